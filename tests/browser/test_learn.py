"""The lesson in a real browser, on the bundled model: every answer is read off the page as a student would.

What counts as right is not asked of the code under test: it is worked out here from what stands on the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import PATIENCE, charts, charts_drawn, sentence, settle, until, visit, visitor
from tests.browser.server import Server

expect.set_options(timeout=PATIENCE)

SMALL_TYPE = """least => [...document.querySelectorAll('[data-testid=stMain] *')].filter(e => {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const box = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    return text && box.width > 1 && box.height > 1 && style.visibility === 'visible' && !e.closest('style, script')
        && parseFloat(style.fontSize) < least;
}).map(e => `${e.textContent.trim().slice(0, 40)}: ${getComputedStyle(e).fontSize}`)"""


def number(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))


def at(page: Page, step: int) -> None:
    page.get_by_text(f"{step} of 8", exact=True).wait_for()
    page.get_by_text("Your turn.").wait_for(timeout=3 * PATIENCE)  # the model may have to be loaded first
    settle(page)


def answer(page: Page, value: float, told: str) -> str:
    """Give an answer and return what is said to it."""
    box = page.get_by_role("spinbutton", name="Answer")
    box.fill(f"{value:.6g}")
    box.press("Enter")
    said = page.locator(".hs-verdict")
    expect(said).to_contain_text(told)
    settle(page)
    return said.inner_text()


def slide(page: Page, key: str) -> None:
    """One step of the step's slider, and wait until the sentence has followed."""
    before = sentence(page)
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press(key)
    expect(page.locator(".hs-sentence").first).not_to_have_text(before)
    settle(page)


def three_bars(page: Page) -> float:
    charts_drawn(page)
    return 100 * sum(sorted(charts(page)[0]["data"][0]["x"])[-3:])


def slide_to_half(page: Page) -> float:
    for _ in range(30):
        share, first = re.match(r"([\d.]+) % of all probability.* first ([\d,]+) of", sentence(page)).groups()
        if number(share) >= 50:
            return number(first)
        slide(page, "ArrowRight")
    raise AssertionError("half of the probability was never reached")


def divide(page: Page) -> float:
    measured, line = re.search(r"measured 1 in ([\d,.]+), by the line 1 in ([\d,.]+)", sentence(page)).groups()
    return number(line) / number(measured)


def count_the_blue(page: Page) -> float:
    charts_drawn(page)
    clear, others = (int(re.search(r"\((\d+)\)", trace["name"])[1]) for trace in charts(page)[0]["data"][:2])
    return 10 * clear / (clear + others)


def one_in(page: Page) -> float:
    label = page.locator(".knob-odds").first
    expect(label).to_contain_text("1 in")
    return number(re.search(r"1 in ([\d,.]+)", label.inner_text())[1])


def slide_to_most(page: Page) -> float:
    wanted = number(re.search(r"for ([\d.]+)\? \(To the nearest", page.locator(".hs-question").inner_text())[1])
    for _ in range(30):
        share, kept = re.match(r"(\d+) % .* by ([\d,]+) dimension", sentence(page)).groups()
        if number(share) / 100 >= wanted:
            return number(kept)
        slide(page, "ArrowRight")
    raise AssertionError("90 % of R² were never reached")


def two_lines(page: Page) -> float:
    charts_drawn(page)
    notes = "[...document.querySelector('.js-plotly-plot').layout.annotations].map(a => a.text)"
    embedding, loss = (number(re.search(r"step ([\d,]+)", note)[1]) for note in page.evaluate(notes))
    return loss / embedding


def multiply(page: Page) -> float:
    here, average = re.search(r"^([\d.]+) % for .* it has 1 in ([\d,.]+)\.", sentence(page)).groups()
    return number(here) / 100 * number(average)


READ: tuple[Callable[[Page], float], ...] = (
    three_bars, slide_to_half, divide, count_the_blue, one_in, slide_to_most, two_lines, multiply,
)  # fmt: skip


def test_the_lesson_from_end_to_end(browser: Browser, demo: Server) -> None:
    """Wrong answers get a hint, right ones the measured number; at the end all eight are answered."""
    with visitor(browser, demo.url) as page:
        visit(page, "/learn")
        for step, read in enumerate(READ, 1):
            at(page, step)
            expect(page.get_by_text(f"{step - 1} answered")).to_be_visible()
            right = read(page)
            hint = answer(page, 10 * right + 7, "Not yet")
            assert len(hint) > 40 and "too large" in hint
            assert answer(page, right, "Right:").startswith("Right:")
            expect(page.get_by_text(f"{step} answered")).to_be_visible()
            if step < len(READ):
                page.get_by_role("button", name="Next").click()
                page.wait_for_url(f"**/learn?*lesson={step + 1}*")
        expect(page.get_by_role("button", name="Next")).to_be_disabled()


@pytest.mark.thorough
def test_a_known_slip_is_named(browser: Browser, demo: Server) -> None:
    with visitor(browser, demo.url) as page:
        visit(page, "/learn?lesson=3")
        at(page, 3)
        assert "other way round" in answer(page, 1 / divide(page), "Not yet")


@pytest.mark.thorough
def test_another_token_is_another_question(browser: Browser, demo: Server) -> None:
    with visitor(browser, demo.url) as page:
        visit(page, "/learn?lesson=3")
        at(page, 3)
        first = divide(page)
        answer(page, first, "Right:")
        box = page.get_by_role("textbox", name="Find a token")
        box.fill("water")
        box.press("Enter")
        expect(page.locator(".hs-question")).to_contain_text("water")
        expect(page.locator(".hs-verdict")).to_have_count(0)
        assert divide(page) != first
        answer(page, divide(page), "Right:")


def test_a_prompt_of_ones_own(browser: Browser, demo: Server) -> None:
    """What is not stored is worked out: the model is loaded, the bars are others, and the answer is checked against them."""
    with visitor(browser, demo.url) as page:
        visit(page, "/learn")
        at(page, 1)
        before = three_bars(page)
        box = page.get_by_role("textbox", name="Prompt")
        box.fill("The king and the")
        box.press("Enter")
        expect(page.locator(".hs-sentence").first).to_contain_text("The king and the", timeout=3 * PATIENCE)
        at(page, 1)
        assert three_bars(page) != before
        answer(page, three_bars(page), "Right:")


@pytest.mark.thorough
@pytest.mark.parametrize("size", [(1440, 900), (1920, 1080)])
def test_presenting_by_keyboard_alone(browser: Browser, demo: Server, size: tuple[int, int]) -> None:
    with visitor(browser, demo.url, width=size[0], height=size[1]) as page:
        visit(page, "/learn?lesson=2")
        at(page, 2)
        until(page, "document.activeElement !== null")
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText") == "Present":
                break
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Leave")).to_be_visible()
        expect(page.locator("[data-testid=stSidebar]")).to_be_hidden()
        page.wait_for_url("**present=1*")
        page.locator(".keys[data-listening]").wait_for(state="attached")
        for key, step in (("ArrowRight", 3), ("PageDown", 4), ("ArrowLeft", 3), ("PageUp", 2), ("PageUp", 1)):
            page.keyboard.press(key)
            at(page, step)
        charts_drawn(page)
        assert page.evaluate(SMALL_TYPE, 20) == []
        page.keyboard.press("PageUp")  # there is nothing before the first
        page.get_by_role("textbox", name="Prompt").focus()
        page.keyboard.press("ArrowRight")  # moves the cursor
        for step in range(2, 6):
            page.keyboard.press("PageDown")
            at(page, step)
        slider = page.get_by_role("slider").first
        before = slider.get_attribute("aria-valuetext")
        slider.focus()
        slider.press("ArrowRight")  # moves the slider
        expect(slider).not_to_have_attribute("aria-valuetext", before or "")
        at(page, 5)
        assert page.evaluate(SMALL_TYPE, 20) == []
        slider.press("PageDown")  # what a clicker sends turns the step wherever the focus is
        at(page, 6)
        bottom = "document.querySelector('.js-plotly-plot').getBoundingClientRect().bottom"
        charts_drawn(page)
        assert page.evaluate(bottom) <= size[1], "the figure is not on the screen as a whole"
        page.keyboard.press("Escape")
        expect(page.locator("[data-testid=stSidebar]")).to_be_visible()
        at(page, 6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("width", [390, 1440])
def test_no_step_is_wider_than_the_screen(browser: Browser, demo: Server, width: int) -> None:
    with visitor(browser, demo.url, width=width) as page:
        for step in (1, 5, 7):
            visit(page, f"/learn?lesson={step}")
            at(page, step)
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width
