"""The page Pruning on the bundled model: its sentence is what its curves show, and the edited model leaves the house."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from tests.browser.conftest import NewPage
from tests.browser.pages import PATIENCE, charts, charts_drawn, plain, sentence, settle, until, visit

expect.set_options(timeout=PATIENCE)

META = "document.querySelector('.js-plotly-plot')?._fullLayout?.meta?."
ALERT = "[data-testid=stAlert]"
DEMO = Path(__file__).parents[2] / "assets" / "demo" / "model"
SOME_TEXT = (
    "The old house stood at the end of the road. We walked along the river and talked about the people in the town. "
)


def curves(page: Page, measure: str) -> dict[str, dict[float, float]]:
    """Every method's curve as it is drawn: fraction in per cent to value."""
    page.get_by_role("radio", name=measure, exact=True).click()
    until(page, f"{META}measure === value", {"KL": "kl", "Top prediction": "top1_agreement"}[measure])
    lines = [trace for trace in charts(page)[0]["data"] if len(trace["x"]) == 18]  # neither the band nor the marks
    return {line["name"]: dict(zip(np.round(line["x"], 6), line["y"], strict=True)) for line in lines}


def told(page: Page) -> tuple[int, int, str, float, int, int]:
    """Fraction, contexts that stay, the method and its KL, and what the paper's and random orders keep."""
    pattern = (
        r"(\d+) % of .* stays in (\d+) of 100 contexts \((.+), KL ([\d.]+) nats\); .* keeps (\d+), random keeps (\d+)\."
    )
    found = re.fullmatch(pattern, sentence(page))
    assert found, sentence(page)
    removed, best, method, kl, paper, random = found.groups()
    return int(removed), int(best), method, float(kl), int(paper), int(random)


def test_the_sentence_is_what_the_curves_show(guest: NewPage) -> None:
    """The best method is the lowest curve, and so are all other numbers; moving the slider moves both."""
    page = guest()
    visit(page, "/pruning")
    charts_drawn(page, 2)
    costs, stays = curves(page, "KL"), curves(page, "Top prediction")
    assert len(costs) >= 8
    slider = page.get_by_role("slider", name="Dimensions removed")
    for at in (30, 35, 90):
        until(page, f"Math.round(100 * {META}removed) === value", at)
        removed, best, method, kl, paper, random = told(page)
        assert removed == at
        assert min(costs, key=lambda name: costs[name][at]) == method
        assert kl == pytest.approx(costs[method][at], rel=0.005)
        assert (best, paper, random) == pytest.approx(
            (stays[method][at], stays["paper's order"][at], stays["random order"][at]), abs=0.51
        )
        before = sentence(page)
        slider.focus()
        slider.press("ArrowRight" if at == 30 else "End")
        if at < 90:
            expect(page.locator(".hs-sentence").first).not_to_have_text(before)
            settle(page)
    page.wait_for_url("**removed=0.9*")
    how_much_can_go_is_read_off(page, stays)


def how_much_can_go_is_read_off(page: Page, stays: dict[str, dict[float, float]]) -> None:
    """The sentence under the threshold, at its first value and at another, against the drawn curves of what stays."""
    line = page.get_by_text(re.compile("^So much can go then"))
    for least in (90, 60):
        if least != 90:
            before = line.inner_text()
            box = page.get_by_role("spinbutton", name="The top prediction has to stay in")
            box.fill(str(least))
            box.press("Enter")
            expect(line).not_to_have_text(before)
            settle(page)
        most = {name: crossing(curve, least) for name, curve in stays.items()}
        best = max(most, key=lambda name: most[name])
        found = re.search(r"then: ([\d.]+) % with (.+?), ([\d.]+) % in the paper's order", plain(line.inner_text()))
        assert found and found[2] == best
        assert float(found[1]) == pytest.approx(most[best], rel=0.005)
        assert float(found[3]) == pytest.approx(most["paper's order"], rel=0.005)


def crossing(curve: dict[float, float], least: float) -> float:
    """Where a falling curve, which begins at 0 % removed with 100 %, crosses a height."""
    x, y = [0.0, *curve], [100.0, *curve.values()]
    over = next((i for i, value in enumerate(y) if value < least), None)
    if over is None:
        return x[-1]
    return x[over - 1] + (x[over] - x[over - 1]) * (y[over - 1] - least) / (y[over - 1] - y[over])


@pytest.mark.thorough
def test_every_view_and_method(guest: NewPage) -> None:
    page = guest()
    visit(page, "/pruning?removed=0.5")
    charts_drawn(page, 2)
    expect(page.get_by_text("80 of 160 dimensions go.")).to_be_visible()  # the paper's order deletes
    page.get_by_role("combobox", name="Method").click()
    page.get_by_role("option", name="rotated, unweighted").click()
    expect(page.get_by_text(re.compile("of 160 dimensions keep less than half"))).to_be_visible()
    page.get_by_role("radio", name="Frequent and rare").click()
    expect(page.get_by_text(re.compile("the most frequent tenth moves by"))).to_be_visible()
    charts_drawn(page, 2)
    page.get_by_role("radio", name="Texts").click()
    page.get_by_role("button", name="Write").click()
    until(page, "document.querySelectorAll('.hs-pair').length === 6")


@pytest.mark.thorough
def test_a_fraction_that_is_none(guest: NewPage) -> None:
    """The address is the only place where a fraction can be typed; the slider makes it good."""
    page = guest()
    visit(page, "/pruning?removed=1.5")
    problem = page.locator(ALERT)
    expect(problem).to_have_text(
        "The address asks for '1.5' of the dimensions to go, but the curves have a point at every 5 % from 5 to 90: "
        "30 % is shown."
    )
    assert told(page)[0] == 30
    page.get_by_role("slider", name="Dimensions removed").press("ArrowRight")
    expect(problem).to_have_count(0)
    visit(page, "/pruning?removed=0.99")
    expect(problem).to_contain_text("asks for '99 %'")
    assert told(page)[0] == 90


# --- export -----------------------------------------------------------------------------------------------------------


def export(page: Page, folder: Path | str) -> None:
    box = page.get_by_role("textbox", name="New folder")
    box.fill(str(folder))
    page.get_by_role("button", name="Export", exact=True).click()


def at_export(guest: NewPage, query: str = "") -> Page:
    page = guest()
    visit(page, f"/pruning?prune-view=Export{query}")
    charts_drawn(page)
    return page


@pytest.mark.thorough
def test_an_edited_model_leaves_the_house(guest: NewPage, tmp_path: Path) -> None:
    """Pruned by 20 % and one token steered to 5×: stock transformers loads a head of that rank, and the token comes more."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    page = at_export(guest, "&removed=0.2&edit=400:5")
    page.get_by_text("Steer:").click()
    export(page, tmp_path / "edited")
    expect(page.get_by_text("Exported: stock transformers loads it")).to_be_visible()
    settle(page)
    facts = page.locator(".hs-facts").last.inner_text()
    assert f"{tmp_path / 'edited'}" in facts and re.search(
        r"What was changed\n\S.* 5×; .*20 % of the dimensions gone", facts
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()
    before = AutoModelForCausalLM.from_pretrained(DEMO).eval()
    assert (rank(before), rank(model)) == (160, 128)
    assert torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    inputs = AutoTokenizer.from_pretrained(tmp_path / "edited")(SOME_TEXT, return_tensors="pt")
    with torch.no_grad():
        once, now = (each(**inputs).logits.float().softmax(-1)[0, :, 400].mean() for each in (before, model))
        assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
    assert 2 < now / once < 10
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]

    refused(page, tmp_path / "edited", "exists already and is left as it is")


def rank(model: torch.nn.Module) -> int:
    """The rank of the output embedding: up to its steepest drop, below which there is rounding."""
    values = torch.linalg.svdvals(model.get_output_embeddings().weight.detach().double())
    drops = values[:-1] / values[1:]
    return int(drops.argmax()) + 1 if drops.max() > 100 else len(values)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own at `folder`, where this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "headscope-test", str(folder)]
    try:
        there = os.name == "posix" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        there = False
    if not there:
        pytest.skip("mounting is not permitted here; tests/faults holds the command against the same fault")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that may not be written to: by its mode, or for root, who may write everywhere, by its disk."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        with mounted(folder, "ro,size=1m") as there:
            yield there
        return
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def refused(page: Page, folder: Path | str, sentence: str) -> None:
    """Exporting there gives one problem, this one."""
    export(page, folder)
    problem = page.locator(ALERT)
    expect(problem).to_contain_text(re.compile(sentence))
    expect(problem).to_have_count(1)
    settle(page)


@pytest.mark.thorough
def test_a_folder_that_cannot_be_made(guest: NewPage, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("text")
    page = at_export(guest)
    refused(page, "", "No folder was named: write where the model is to go")
    refused(
        page, tmp_path / "there", "there exists already and is left as it is: name a folder that does not exist yet"
    )
    refused(page, tmp_path / "file" / "below", "file is a file, so below cannot be made in it: choose another folder")
    page.get_by_text("Prune the head").click()
    refused(page, tmp_path / "edited", "There is nothing to export yet: prune the head, steer a token, or both")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "there"]


@pytest.mark.thorough
def test_a_disk_that_cannot_be_written_to(guest: NewPage, tmp_path: Path) -> None:
    page = at_export(guest)
    with read_only(tmp_path / "closed") as folder:
        refused(page, folder / "edited", r"closed cannot be written to \(.*read-only.*\): choose a folder of your own")
    with mounted(tmp_path / "small", "size=1m") as folder:
        refused(page, folder / "edited", r"The export needs about [\d.]+ MB of disk and [\d.]+ MB are free: .*small")
        assert list(folder.iterdir()) == []
