"""Nobody is left out: axe finds nothing serious on any page, light or dark, and the main job is done by keyboard alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import NewPage
from tests.browser.pages import PATIENCE, charts, charts_drawn, goto, sentence, settle, until, visit, visitor
from tests.browser.server import running_app

expect.set_options(timeout=PATIENCE)

SHOWN = {
    "Learn": ".js-plotly-plot",
    "Model": ".js-plotly-plot",
    "Encoding": ".js-plotly-plot",
    "Steering": ".knobs .js-plotly-plot",
    "Samples": ".hs-pair",
    "Pruning": ".js-plotly-plot",
    "Dynamics": ".js-plotly-plot",
    "Compare": ".js-plotly-plot",
    "Method": "h2",
}
"""What stands on a page when it is filled."""
STREAMLITS_OWN = "[data-testid=stSidebarNavItems]"
"""The menu of pages: with sections Streamlit puts `div` between `ul` and `li`, which no setting changes."""


def violations(page: Page) -> list[str]:
    """What axe finds serious or critical, a line each."""
    result: dict[str, Any] = Axe().run(page).response
    assert len(result["passes"]) > 10
    inside = f"selector => !!document.querySelector(selector)?.closest('{STREAMLITS_OWN}')"
    return [
        f"{each['id']}: {node['html'][:120]} {node['failureSummary']}"
        for each in result["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
        if each["id"] not in ("list", "listitem") or not page.evaluate(inside, node["target"][0])
    ]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(guest: NewPage, scheme: Literal["light", "dark"]) -> None:
    page = guest(scheme=scheme)
    visit(page, "/learn")
    found = {}
    for title, shown in SHOWN.items():
        if title != "Learn":
            goto(page, title)
        page.locator(shown).first.wait_for()
        if "plotly" in shown:
            charts_drawn(page)
        for explained in page.locator("[data-testid=stExpander] summary", has_text="How to read this").all():
            explained.click()
        settle(page)
        assert page.locator(".katex-error").all_inner_texts() == []
        found[title] = violations(page)
    assert found == {title: [] for title in SHOWN}


@pytest.mark.thorough
def test_axe_finds_nothing_serious_where_a_class_joins(browser: Browser, tmp_path: Path) -> None:
    class_room = ("--classroom", "--model", "demo", "--host", "localhost")
    with running_app(tmp_path / "cache", tmp_path / "server.log", *class_room) as server:
        for scheme in ("light", "dark"):
            with visitor(browser, server.url, scheme=scheme) as page:
                visit(page, "/join")
                until(page, "document.querySelector('.hs-join img')?.naturalWidth > 200")  # the QR code stands
                assert violations(page) == []


def test_axe_sees_what_is_wrong(guest: NewPage) -> None:
    """The check itself can fail: a button without a name and text that can hardly be read are found."""
    page = guest()
    visit(page, "/method")
    page.evaluate(
        "document.querySelector('[data-testid=stMain]').insertAdjacentHTML('afterbegin',"
        " '<button></button><p style=\"color: #999; background: #fff\">pale</p>')"
    )
    assert {line.split(":")[0] for line in violations(page)} == {"button-name", "color-contrast"}


# --- by keyboard alone ------------------------------------------------------------------------------------------------

FOCUSED = """() => {
    let at = document.activeElement;
    while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
    if (!at || at === document.body) return '';
    const labels = [...(at.labels ?? [])].map(l => l.innerText);
    const name = at.getAttribute('aria-label') || labels.join(' ') || at.innerText || '';
    return `${at.getAttribute('role') || at.type || at.tagName.toLowerCase()} ${name.trim()}`;
}"""


def tab_to(page: Page, wanted: str, most: int = 60) -> None:
    """Press Tab until the focus is on what matches, as `kind name`; what is passed on the way is told on failure."""
    passed = []
    for _ in range(most):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(FOCUSED))
        if re.match(wanted, passed[-1]):
            return
    raise AssertionError(f"{wanted!r} was not reached by Tab: {passed}")


def test_the_main_job_by_keyboard_alone(guest: NewPage) -> None:
    """Choose a text, go to Steering, add a token, move its slider, see number and figure follow, have texts written."""
    page = guest()
    visit(page, "/method?positions=1024")  # a page that computes nothing

    tab_to(page, "combobox.*Text")
    page.keyboard.type("python-docs")
    page.keyboard.press("Enter")
    page.wait_for_url("**corpus=python-docs*")
    settle(page)

    page.keyboard.press("Control+Home")
    tab_to(page, "(a|link) Steering")
    page.keyboard.press("Enter")
    page.wait_for_url("**/steering**")
    charts_drawn(page, 2)

    tab_to(page, "text.* Add a token")
    page.keyboard.type(" house")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="␣house", exact=True).wait_for()
    settle(page)
    tab_to(page, r".*␣house$")
    page.keyboard.press("Enter")
    page.get_by_role("slider", name=re.compile("house")).wait_for()
    settle(page)
    assert "house" in sentence(page)

    tab_to(page, "range .*house")
    slider = page.get_by_role("slider", name=re.compile("house"))
    told, asked = sentence(page), slider.get_attribute("aria-valuetext")
    bars = page.locator(".knob-pair .knob-value-after").all_inner_texts()
    drawn = [chart["data"][-1]["x"] for chart in charts(page)]
    page.keyboard.press("ArrowRight")
    expect(page.locator(".hs-sentence").first).not_to_have_text(told)
    settle(page)
    assert slider.get_attribute("aria-valuetext") != asked
    assert f"asked {slider.get_attribute('aria-valuetext')}" in sentence(page)
    assert page.locator(".knob-pair .knob-value-after").all_inner_texts() != bars
    assert [chart["data"][-1]["x"] for chart in charts(page)] != drawn

    tab_to(page, "(a|link) Samples")
    page.keyboard.press("Enter")
    page.wait_for_url("**/samples**")
    page.locator(".hs-pair").first.wait_for()
    page.get_by_text("shaded from the first").wait_for()
    settle(page)
    tab_to(page, "number Texts per side")
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    tab_to(page, "(button|submit) Write")
    page.keyboard.press("Enter")
    expect(page.locator(".hs-pair")).to_have_count(2)
    expect(page.locator(".hs-sentence").first).to_contain_text("house")
