"""What a person does on the dashboard, in a real browser: look, steer, write, reload, come back, make mistakes.

`page` and `new_page` fail at the end on console errors, on requests to other hosts and on boxes of exceptions,
`server` on tracebacks in its log.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, WebSocketRoute, expect

from tests.browser.conftest import NewPage
from tests.browser.pages import (
    PATIENCE,
    charts,
    charts_drawn,
    frames_drawn,
    grab,
    sentence,
    settle,
    text_of,
    until,
    visit,
)
from tests.browser.server import Server

PAGES = ("", "encoding", "steering", "samples", "method")
AWAY_FROM_PLOTLYS = """async () => {
  const chart = document.querySelector(".knobs .js-plotly-plot"), point = document.querySelector(".knob-now");
  const y = Number(document.querySelector(".knob-told").innerText.match(/([0-9.]+)× on held-out/)[1]);
  const marker = { x: [Number(point.dataset.asked)], y: [y], mode: "markers", showlegend: false };
  await window.Plotly.addTraces(chart, marker);
  const theirs = [...chart.querySelectorAll(".scatterlayer .point")].at(-1).getBoundingClientRect();
  const ours = point.getBoundingClientRect();
  await window.Plotly.deleteTraces(chart, -1);
  return Math.hypot(ours.x - theirs.x - theirs.width / 2, ours.y - theirs.y - theirs.height / 2);
}"""
"""Pixels between the point that says where the slider stands and a marker of Plotly's at the same values."""
HOSTILE = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>**b** $x$ :red[y]"

expect.set_options(timeout=PATIENCE)


def problems(page: Page) -> Locator:
    """The boxes that tell, in a sentence, what is wrong."""
    return page.locator("[data-testid=stAlert]")


def add_token(page: Page, text: str) -> Locator:
    """Empty the list, type a token, take the first suggestion; returns its slider."""
    page.get_by_role("slider").first.wait_for()  # a first visitor finds one token steered
    page.get_by_role("button", name="Remove all", exact=True).click()
    expect(page.get_by_role("slider")).to_have_count(0)
    box = page.get_by_role("textbox", name="Add a token")
    box.fill(text)
    box.press("Enter")
    page.get_by_role("button", name=text.replace(" ", "␣"), exact=True).click()
    expect(page.get_by_role("slider")).to_have_count(1)
    return page.get_by_role("slider")


def press(page: Page, slider: Locator, key: str) -> str:
    """Press a key on a slider, wait for the sentence to follow, and return the slider's new value."""
    before = sentence(page)
    slider.focus()
    slider.press(key)
    expect(page.locator(".hs-sentence").first).not_to_have_text(before)
    settle(page)
    return slider.get_attribute("aria-valuetext") or ""


def test_the_first_visit_ends_at_a_fit(page: Page, first_visit: str) -> None:
    visit(page, f"/encoding?{first_visit}")
    charts_drawn(page)
    assert re.search(r"explains \d\d % of it \(\d\d–\d\d % on tokens and text it has not seen\)", sentence(page))
    scatter = charts(page)[0]["data"][0]
    assert scatter["type"] == "scattergl"
    assert len(scatter["x"]) >= 1000


@pytest.mark.sampled(5)
@pytest.mark.parametrize("view", ["Fit", "Weights", "Sparsity", "Why", "Map"])
def test_every_figure_of_the_encoding(page: Page, first_visit: str, view: str) -> None:
    visit(page, f"/encoding?{first_visit}&view={view}")
    charts_drawn(page)
    assert page.get_by_role("radio", name=view, exact=True).is_checked()
    assert any(len(trace["x"]) for trace in charts(page)[0]["data"])


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_stands(new_page: NewPage, first_visit: str, name: str, width: int) -> None:
    page = new_page(width=width)
    visit(page, f"/{name}?{first_visit}&edit=4626:20")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    if name in {"", "encoding", "steering"}:
        charts_drawn(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width, "the page is wider than the screen"


@pytest.mark.thorough
def test_fields_that_come_late_show_what_is_analysed(guest: NewPage) -> None:
    """A slow browser has no field yet when the page is drawn for the second time, because the analysis is finished."""
    page = guest()
    late: list[Route] = []
    page.route(re.compile(r"/(Selectbox|NumberInput)\.[^/]*\.js"), lambda route: late.append(route))
    page.goto("/encoding?model=demo&corpus=python-docs&positions=1024&seed=3")
    page.get_by_role("progressbar").wait_for()
    page.locator(".js-plotly-plot").wait_for(timeout=3 * PATIENCE)
    assert late
    for route in late:
        route.continue_()
    page.get_by_text("Settings").click()
    for label, value in (("Model", "demo"), ("Text", "python-docs"), ("Seed", "3")):
        expect(page.get_by_label(label, exact=True)).to_have_value(re.compile(rf"^{value}\s?$"))


def test_a_name_may_begin_with_the_one_that_is_shown(guest: NewPage) -> None:
    page = guest()
    visit(page, "/method")
    for label, shown, typed in (("Text", "sampler", "sampler.txt"), ("Model", "demo", "demo-run/x")):
        field = page.get_by_label(label, exact=True)
        expect(field).to_have_value(re.compile(rf"^{shown}\s?$"))
        field.click()
        field.press("ControlOrMeta+a")
        page.keyboard.type(typed)
        expect(field).to_have_value(typed)
        field.press("Escape")
    field = page.get_by_label("Text", exact=True)
    field.fill("sampler.txt")
    field.press("Enter")
    page.wait_for_url("**corpus=sampler.txt*")


@pytest.mark.thorough
def test_back_leads_to_the_page_before(page: Page, first_visit: str) -> None:
    """However often a choice changed the address, and with all that was chosen; forward too."""
    visit(page, f"/encoding?{first_visit}")
    page.get_by_role("link", name="Steering").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("knob")
    slider = page.get_by_role("slider").first
    asked = [press(page, slider, key) for key in ("End", "ArrowLeft", "ArrowLeft")][-1]
    edit = urlsplit(page.url).query
    assert "edit=" in edit
    page.go_back()
    expect(page.get_by_role("radio", name="Sparsity")).to_be_visible()
    settle(page)
    assert urlsplit(page.url).path == "/encoding"
    page.go_forward()
    expect(page.get_by_role("slider").first).to_have_attribute("aria-valuetext", asked)
    settle(page)
    assert urlsplit(page.url).path == "/steering" and "edit=" in page.url


def bars(page: Page, side: str) -> list[float]:
    """The probabilities that the next-token chart shows, in per cent."""
    shown = page.locator(f".knob-pair .knob-value-{side}").all_inner_texts()
    return [float(text.removesuffix(" %").replace(",", "").replace("\u2212", "-")) for text in shown]


def test_steering_by_keyboard(page: Page, first_visit: str) -> None:
    visit(page, f"/steering?{first_visit}")
    slider = add_token(page, " river")
    charts_drawn(page)
    assert slider.get_attribute("aria-valuetext") == "20×"
    assert re.search(r"␣river asked 20×, got [\d.]+× on new text", sentence(page))
    before, after = bars(page, "before"), bars(page, "after")
    now = "Number(document.querySelector('.knob-now').dataset.asked)"
    assert page.evaluate(now) == 20
    assert page.evaluate(AWAY_FROM_PLOTLYS) < 1
    assert press(page, slider, "ArrowRight") == "25×"
    until(page, f"{now} === value", 25)
    assert bars(page, "before") == before  # the model as it is
    assert max(bars(page, "after")) > max(after)  # ` river` at this prompt
    assert "␣river asked 25×" in sentence(page)


def test_a_dragged_slider_redraws_without_the_server(page: Page, first_visit: str) -> None:
    """While the hand is on it nothing is sent; what the browser works out is what the server says on release."""
    visit(page, f"/steering?{first_visit}")
    slider = add_token(page, " river")
    charts_drawn(page)
    told, after = sentence(page), bars(page, "after")
    x, y, _ = grab(page, slider)
    frames = frames_drawn(page)
    for move in range(1, 31):
        page.mouse.move(x - 6 * move, y)
    until(page, "document.querySelector('.knobs').dataset.frames > value + 10", frames)
    value = slider.get_attribute("aria-valuetext")
    assert value != "20×" and sentence(page) == told
    dragged, line = bars(page, "after"), page.locator(".knob-told").inner_text()
    assert dragged != after and f"asked {value}" in line
    page.mouse.up()
    expect(page.locator(".hs-sentence").first).not_to_have_text(told)
    settle(page)
    released = bars(page, "after")
    assert all(abs(a - b) <= 0.02 * b + 0.001 for a, b in zip(dragged, released, strict=True))
    live = re.search(r"fitting text, (1/)?([\d.]+)×? on held-out", line)
    exact = re.search(r"got (1/)?([\d.]+)×?", sentence(page))
    assert live is not None and exact is not None
    assert abs(float(live[2]) / float(exact[2]) - 1) < 0.05


def numbers(place: Locator) -> list[float]:
    found = re.findall(r"\d[\d.]*(?:e-?\d+)?", place.inner_text().replace("\u2212", "-"))
    return [float(number) for number in found]


class Line:
    """A network between browser and server that can be cut: what is on its way is lost, nobody gets through."""

    def __init__(self, server: Server) -> None:
        self.to = urlsplit(server.url).port
        self.whole = True
        self.flows = threading.Event()
        self.flows.set()
        self.ends: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://localhost:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self.whole = False
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.ends.clear()

    def heal(self) -> None:
        self.whole = True

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                near, _ = self.listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.to))
                self.ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                self.flows.wait()
                other.sendall(piece)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def line(demo: Server) -> Iterator[Line]:
    made = Line(demo)
    yield made
    made.listener.close()
    made.flows.set()
    made.cut()


def test_a_move_made_while_the_connection_is_away_is_not_lost(browser: Browser, line: Line) -> None:
    context = browser.new_context(base_url=line.url)  # nobody watches its console, which tells of the cut
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    visit(page, "/steering")
    charts_drawn(page, 2)
    slider = page.get_by_role("slider").first
    told = sentence(page)
    assert slider.get_attribute("aria-valuetext") == "20×" and "asked 20×" in told
    x, y, apart = grab(page, slider)
    page.mouse.move(x - 3 * apart, y, steps=3)
    line.cut()
    page.locator("[data-testid=stApp]:not([data-test-connection-state=CONNECTED])").wait_for(state="attached")
    page.mouse.move(x - 9 * apart, y, steps=5)
    page.mouse.up()
    value = slider.get_attribute("aria-valuetext") or ""
    assert value != "20×" and sentence(page) == told
    line.heal()
    expect(page.locator(".hs-sentence").first).to_contain_text(f"asked {value}")
    settle(page)
    assert slider.get_attribute("aria-valuetext") == value
    until(page, "decodeURIComponent(location.search).includes(value)", f":{value.removesuffix('×')}")
    context.close()


def test_the_first_page_is_found_by_its_name_too(guest: NewPage) -> None:
    page = guest()
    visit(page, "/model?positions=4096&edit=4058:7")
    charts_drawn(page)
    assert page.get_by_role("dialog").count() == 0
    assert urlsplit(page.url).path == "/" and "4058:7" in unquote(page.url)


def test_a_page_that_streamlit_has_given_up_opens_anew(browser: Browser, demo: Server) -> None:
    """As it does where an answer speaks of something that was lost with a connection."""
    context = browser.new_context(base_url=demo.url)
    context.set_default_timeout(PATIENCE)
    page, lines = context.new_page(), []

    def carry(line: WebSocketRoute) -> None:
        server = line.connect_to_server()
        line.on_message(server.send)
        server.on_message(line.send)
        lines.append(line)

    page.route_web_socket(re.compile("_stcore/stream"), carry)
    visit(page, "/steering?edit=4058:7")
    charts_drawn(page, 2)
    page.evaluate("window.before = true")
    lines[-1].send(b"\xff no message")
    until(page, "!window.before")
    charts_drawn(page, 2)
    assert "asked 7×" in sentence(page) and len(lines) == 2
    context.close()


@pytest.mark.parametrize("keys", ["ArrowLeft " * 7, "ArrowLeft " * 12, "ArrowRight " * 6, "End"])
def test_what_is_said_while_a_slider_moves_is_near_the_answer(browser: Browser, line: Line, keys: str) -> None:
    """Until the server answers the line under it is read off curves."""
    context = browser.new_context(base_url=line.url)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    visit(page, "/steering?edit=300:2")
    charts_drawn(page, 2)
    told = page.locator(".knob-told")
    line.flows.clear()
    for key in keys.split():
        page.get_by_role("slider").first.press(key)
    page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    expect(told).to_contain_text("about")
    guess = numbers(told)
    asked = page.get_by_role("slider").first.get_attribute("aria-valuetext")
    line.flows.set()
    expect(told).to_have_text(re.compile(f"asked {asked}: (?!about)"))
    assert len(guess) > 4 and guess == pytest.approx(numbers(told), rel=0.02)
    context.close()


def test_a_slider_that_is_drawn_anew_under_the_hand_follows_the_server_again(guest: NewPage) -> None:
    """The list changes while a slider is held, so that nobody lets go of the slider that was grabbed."""
    page = guest()
    visit(page, "/steering")
    charts_drawn(page, 2)
    page.get_by_role("slider").first.dispatch_event("pointerdown")  # a finger, which gives no focus to lose
    page.evaluate(
        """() => {
            const { knobs } = document.querySelector(".knobs");
            knobs.ids = "";
            knobs.update(knobs.data, knobs.send);
        }"""
    )
    page.get_by_role("button", name="All to 1×").click()
    expect(page.get_by_role("slider").first).to_have_attribute("aria-valuetext", "1×")


@pytest.mark.parametrize("asked", [777, 17.3])
def test_a_ratio_that_is_no_stop_of_the_slider_is_what_every_figure_shows(guest: NewPage, asked: float) -> None:
    page = guest()
    visit(page, f"/steering?edit=4058:{asked:g}")
    charts_drawn(page, 2)
    assert page.get_by_role("slider").first.get_attribute("aria-valuetext") == f"{asked:g}×"
    got = re.search(r"asked [\d.]+×, got ([\d.,]+)× on new text", sentence(page))
    live = re.search(r"asked ([\d.]+)×: .*, ([\d.,]+)× on held-out text", page.locator(".knob-told").inner_text())
    assert got is not None and live is not None and (live[1], live[2]) == (f"{asked:g}", got[1])
    drawn = page.locator(".knob-steered .knob-value-after").inner_text()
    assert f"to {drawn}" in (page.locator(".knob-next").get_attribute("aria-label") or "")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])  # Streamlit has other words for each
def test_what_is_said_when_the_server_cannot_be_reached(browser: Browser, line: Line, host: str) -> None:
    context = browser.new_context(base_url=line.url.replace("localhost", host))
    page = context.new_page()
    visit(page, "/method")
    line.cut()
    page.get_by_role("dialog").wait_for(timeout=PATIENCE)
    body = page.locator("[role=dialog] > h2 + div")
    said = body.evaluate("body => getComputedStyle(body, '::after').content")
    assert "This dashboard cannot be reached" in said
    assert body.evaluate("body => getComputedStyle(body).fontSize") == "0px" and not body.locator("*:visible").count()
    line.heal()
    expect(page.get_by_role("dialog")).to_be_hidden()
    context.close()


def test_a_server_that_stands_still_is_told(browser: Browser, line: Line) -> None:
    """Nothing is closed and nothing comes: Streamlit itself would say nothing."""
    context = browser.new_context(base_url=line.url)
    page = context.new_page()
    visit(page, "/method")
    told = page.get_by_text("The server has not answered for some seconds")
    expect(told).to_be_hidden()
    line.flows.clear()
    expect(told).to_be_visible(timeout=20_000)
    assert page.locator(".hs-still").bounding_box()["y"] >= 0  # type: ignore[index]
    line.flows.set()
    expect(told).to_be_hidden(timeout=20_000)
    assert not page.get_by_role("dialog").count()
    context.close()


def test_every_view_of_steering(page: Page, first_visit: str) -> None:
    visit(page, f"/steering?{first_visit}&edit=4626:5")
    for view in ("Result", "Side effects"):
        page.get_by_role("radio", name=view, exact=True).click()
        expect(page.get_by_role("radio", name=view, exact=True)).to_be_checked()
        charts_drawn(page, 2)


def test_a_reload_keeps_the_edit(page: Page, first_visit: str) -> None:
    visit(page, f"/steering?{first_visit}")
    value = press(page, add_token(page, " river"), "ArrowLeft")
    told = sentence(page)
    page.reload()
    slider = page.get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuetext", value)
    settle(page)
    assert sentence(page) == told


def test_two_visitors_do_not_see_each_other(new_page: NewPage, first_visit: str) -> None:
    first, second = new_page(), new_page()
    for page in (first, second):
        visit(page, f"/steering?{first_visit}")
    of_first = add_token(first, " river")
    of_second = add_token(second, " Paris")
    press(first, of_first, "ArrowRight")
    press(second, of_second, "ArrowLeft")
    assert "river asked 25×" in sentence(first)
    assert "Paris" not in text_of(first)
    assert "Paris asked 18×" in sentence(second)
    assert "river" not in sentence(second)


def test_samples_before_and_after(page: Page, first_visit: str) -> None:
    visit(page, f"/samples?{first_visit}&edit=4626:100")
    page.get_by_role("spinbutton", name="Texts per side").fill("2")
    page.get_by_role("spinbutton", name="New tokens").fill("12")
    page.get_by_role("button", name="Write").click()
    until(page, "document.querySelectorAll('.hs-pair').length === 2")
    charts_drawn(page)
    assert re.search(r"␣river \d+ of 24 tokens, \d+ before; expected [\d.]+\.", sentence(page))


def test_hostile_text_stays_text(page: Page, first_visit: str) -> None:
    visit(page, f"/steering?{first_visit}&edit=4626:20")
    charts_drawn(page)
    prompt = page.get_by_role("textbox", name="Prompt")
    prompt.fill(HOSTILE)
    prompt.press("Enter")
    add = page.get_by_role("textbox", name="Add a token")
    add.fill(HOSTILE)
    add.press("Enter")
    page.get_by_text(re.compile(r"&lt;script|<script")).first.wait_for()
    settle(page)
    visit(page, "/encoding?model=" + HOSTILE.replace("$", "%24").replace(" ", "%20"))
    expect(problems(page).first).to_contain_text("<script>window.broken = 1</script>")
    assert page.evaluate("window.broken") is None
    assert page.locator("img[src=x]").count() == 0
    visit(page, "/samples?samples=http://e.test/login&seed=www.e.test&top-k=me@e.test")
    expect(problems(page).filter(has_text="http://e.test/login")).to_have_count(1)
    assert page.locator("[data-testid=stAlert] a").count() == 0


def test_a_prompt_that_is_too_long(page: Page, first_visit: str) -> None:
    visit(page, f"/steering?{first_visit}&edit=4626:20")
    charts_drawn(page)
    prompt = page.get_by_role("textbox", name="Prompt")
    prompt.fill("word " * 10_000)
    prompt.press("Enter")
    expect(problems(page)).to_contain_text(re.compile(r"The prompt has [\d,]+ (characters|tokens).*shorten"))


def test_a_model_that_is_not_there(page: Page) -> None:
    visit(page, "/")
    box = page.get_by_role("combobox", name="Model")
    box.fill("no-such-model")
    box.press("Enter")
    expect(problems(page)).to_contain_text("There is no folder 'no-such-model'")
    expect(problems(page)).to_contain_text("smollm2")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 50, "binary"),
        ("empty.txt", b"", "empty|no text"),
        ("latin.txt", b"caf\xe9 " * 500, "UTF-8"),
    ],
)
def test_a_file_that_is_no_text(
    page: Page, first_visit: str, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    visit(page, f"/encoding?{first_visit}")
    page.get_by_role("button", name="Upload a text").click()
    page.locator("input[type=file]").set_input_files(tmp_path / name)
    expect(problems(page).first).to_contain_text(re.compile(told))


def test_a_file_that_is_too_large(page: Page, first_visit: str, tmp_path: Path) -> None:
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    visit(page, f"/encoding?{first_visit}")
    page.get_by_role("button", name="Upload a text").click()
    page.locator("input[type=file]").set_input_files(large)
    said = page.get_by_text(re.compile("must be 50.*MB or smaller|at most 50.*MB")).first
    said.wait_for()
    box = said.bounding_box()
    assert box and box["width"] > 100 and box["height"] > 15  # readable, not for screen readers alone
