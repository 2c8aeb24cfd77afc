"""What is taken along from a page: the address in another browser, the command in a shell, the report without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from core.kept import bundled
from core.results import plain
from core.series import summary
from tests.app.test_share import HEADSCOPE, close, pasted, without_times
from tests.browser.conftest import NewPage
from tests.browser.pages import PATIENCE, Watch, charts, charts_drawn, sentence, settle, until, visit
from tests.browser.server import ROOT

expect.set_options(timeout=PATIENCE)

CHARTS = {"steering": 2, "pruning": 2}


def changed(page: Page, name: str) -> None:
    """A view that is not the one a first visitor finds."""
    visit(page, f"/{name}?edit=400:5" if name == "steering" else f"/{name}")
    charts_drawn(page, CHARTS[name])
    told = sentence(page)
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator(".hs-sentence").first).not_to_have_text(told)
    if name == "steering":
        page.locator(".knob-pair").first.wait_for()
        bars = page.locator(".knob-pair .knob-value-before").all_inner_texts()
        prompt = page.get_by_role("textbox", name="Prompt")
        prompt.fill("The old house")
        prompt.press("Enter")
        page.wait_for_url("**prompt=The*")
        now = "[...document.querySelectorAll('.knob-pair .knob-value-before')].map(e => e.innerText)"
        page.wait_for_function(f"before => {now}.length && JSON.stringify({now}) !== JSON.stringify(before)", arg=bars)
    else:
        page.get_by_role("radio", name="Top prediction", exact=True).click()
        page.wait_for_url("**prune-measure=*")
        until(page, "document.querySelector('.js-plotly-plot')?._fullLayout?.meta?.measure === 'top1_agreement'")
    settle(page)
    charts_drawn(page, CHARTS[name])


def shown(page: Page) -> dict[str, Any]:
    """Every number and mark that the page shows."""
    drawn = [(chart["meta"], chart["data"]) for chart in charts(page)]
    bars = page.locator(".knob-pair").all_inner_texts()
    told = [text for text in page.locator(".hs-note").all_inner_texts() if text]
    return {"sentence": sentence(page), "charts": drawn, "bars": bars, "told": told}


def copied(page: Page) -> tuple[str, str]:
    """Address and command, as they stand under Share."""
    page.get_by_role("button", name="Share").click()
    texts = page.locator("[data-testid=stCode]")
    expect(texts).to_have_count(3)
    address, command, _ = texts.all_inner_texts()
    return address.strip(), command.strip()


def in_a_shell(command: str, cache: Path) -> subprocess.Popen[str]:
    """The copied command, run by somebody who has computed nothing yet."""
    environment = os.environ | {"HEADSCOPE_CACHE": str(cache)}
    return subprocess.Popen(
        pasted(command, *HEADSCOPE),
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(CHARTS, reverse=True))
def test_address_and_command_give_it_again(guest: NewPage, tmp_path: Path, name: str) -> None:
    """In a browser that was never here: the same sentence, figures and numbers; in a shell: the numbers of the page's JSON."""
    page = guest()
    changed(page, name)
    seen = shown(page)
    address, command = copied(page)
    with in_a_shell(command, tmp_path) as run:
        with page.expect_download() as download:
            page.get_by_role("button", name="Result as JSON").click()
        other = guest()
        other.goto(address)
        charts_drawn(other, CHARTS[name])
        if name == "steering":
            other.locator(".knob-pair").first.wait_for()
        settle(other)
        assert shown(other) == seen
        printed, problems = run.communicate(timeout=300)
    assert run.returncode == 0, problems
    expected = json.loads(Path(download.value.path()).read_text("utf-8"))
    found = json.loads(printed)
    if name == "pruning":  # the page knows every method and fraction, its command those that its sentence names
        keys = [(point["method"], point["removed"]) for point in found["curve"]]
        assert len(keys) == 3
        by_key = {(point["method"], point["removed"]): point for point in expected["curve"]}
        expected["curve"] = [by_key[key] for key in keys]
        kl = re.search(r"KL ([\d.]+) nats", seen["sentence"])
        assert kl and float(kl[1]) == pytest.approx(min(p["kl"] for p in found["curve"]), rel=0.005)
    close(without_times(found), without_times(expected), rel=1e-5)  # another process adds fp32 up in another order


def test_dynamics_is_taken_along_too(guest: NewPage) -> None:
    page = guest()
    visit(page, "/dynamics?step=64")
    charts_drawn(page, 3)
    address, command = copied(page)
    assert "/dynamics?" in address and "step=64" in address and command == "headscope dynamics demo"
    with page.expect_download() as download:
        page.get_by_role("button", name="Result as JSON").click()
    assert json.loads(download.value.path().read_text("utf-8")) == json.loads(json.dumps(plain(summary(bundled()))))
    assert not page.get_by_role("button", name="Write a report").count()


@pytest.mark.thorough
def test_the_report_opens_without_a_network(guest: NewPage, browser: Browser, tmp_path: Path) -> None:
    """Every figure of the file stands, nothing is asked of anybody, and the browser has nothing to complain of."""
    page = guest()
    visit(page, "/steering")
    charts_drawn(page, 2)
    page.get_by_role("button", name="Share").click()
    page.get_by_role("button", name="Write a report").click()
    ready = page.get_by_role("button", name=re.compile("^Report, "))
    with page.expect_download() as download:
        ready.click()
    download.value.save_as(tmp_path / "report.html")

    context = browser.new_context(offline=True)
    try:
        report = context.new_page()
        watch, asked = Watch(report), []
        report.on("request", lambda request: asked.append(request.url))
        report.goto((tmp_path / "report.html").as_uri())
        figures = report.locator(".plot")
        number = figures.count()
        assert number >= 8
        charts_in_it = "[...document.querySelectorAll('.plot')].filter(e => e._fullData?.length)"
        report.wait_for_function(f"number => {charts_in_it}.length === number", arg=number)
        assert report.evaluate(f"Math.min(...{charts_in_it}.map(e => e.querySelector('.main-svg').clientHeight))") > 100
        assert "asked 20×" in report.locator("body").inner_text()
        assert watch.problems == [] and asked == [report.url]
    finally:
        context.close()
