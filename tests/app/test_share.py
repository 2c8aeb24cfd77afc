"""What a page offers to copy gives its numbers again: addresses in a fresh session, commands in a shell, Python."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app import cache, edits, handout, jobs, runs, share
from app.share import View
from app.state import Choice, _exactly
from core import summary
from core.analysis import Analysis
from core.cli.commands import cli
from core.errors import AnalysisError, InputError
from core.kept import bundled
from core.results import Sampling, plain
from core.series import summary as series_summary
from core.steering import Edit
from core.store import Store
from tests.app.arrays import RIVER, ArrayAnalysis
from tests.app.conftest import read, settled, text_of

Visit = Callable[..., AppTest]
ROOT = Path(__file__).parents[2]
DEMO = Choice("demo", "sampler", 8192)
PROMPT = 'It\'s "quoted", $HOME `ls` \\n\n -- <b>日本</b>'


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis(DEMO.model, DEMO.corpus, DEMO.settings)


def steered(analysis: Analysis) -> tuple[Edit, ...]:
    return Edit(analysis.find_token(" river").id, 20.0), Edit(analysis.find_token(" the").id, 1 / 3)


# --- commands and Python ----------------------------------------------------------------------------------------------


HEADSCOPE = (sys.executable, "-m", "core.cli")
ARGUMENTS = (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))")


def pasted(command: str, *program: str, options: str = "--json -") -> list[str]:
    """A shell that is given a command, in which `headscope` is a program of ours."""
    return ["sh", "-c", f'headscope() {{ {shlex.join(program)} "$@" {options}; }}\n{command}']


def in_a_shell(command: str) -> list[Any]:
    """What a command gives to somebody who pasted it: a shell takes it apart, the commands run here, with their JSON."""
    told = in_a_process(*pasted(command, *ARGUMENTS, options=""))
    found = []
    for arguments in map(json.loads, told.splitlines()):
        options = arguments.index("--") if "--" in arguments else len(arguments)
        done = CliRunner().invoke(cli, [*arguments[:options], "--json", "-", *arguments[options:]])
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    return found


def in_python(code: str, wanted: str) -> Any:
    """Run lines of Python by themselves, then give the value of an expression."""
    names: dict[str, Any] = {}
    exec(code, names)
    return json.loads(json.dumps(plain(eval(wanted, names))))


def in_a_process(*command: str) -> str:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def close(found: Any, expected: Any, rel: float = 1e-9) -> None:
    """The same names and texts, and numbers equal to nine digits if nothing else is said."""
    assert json_leaves(found).keys() == json_leaves(expected).keys()
    for path, value in json_leaves(expected).items():
        if isinstance(value, float):
            assert json_leaves(found)[path] == pytest.approx(value, rel=rel, abs=1e-3 * rel), path
        else:
            assert json_leaves(found)[path] == value, path


def json_leaves(value: Any, path: str = "") -> dict[str, Any]:
    value = plain(value)
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value}
    return {key: leaf for name, each in items for key, leaf in json_leaves(each, f"{path}.{name}").items()}


def fitted(analysis: Analysis) -> dict[str, Any]:
    found = analysis.encoding()
    return summary.fit(found, model="demo", corpus="sampler", revision=analysis.files().revision)


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("seconds", "cached")}


def test_model(analysis: Analysis) -> None:
    """In processes of their own, as somebody runs them."""
    view = View("model", DEMO)
    doctor, fit = map(json.loads, in_a_process(*pasted(share.command(view), *HEADSCOPE)).splitlines())
    close(without_times(fit), without_times(fitted(analysis)))
    facts = analysis.head_facts()
    # rounding is that of this machine, not of the one that made the demo
    here = replace(facts, check=analysis.loaded().check)
    expected = summary.head(here, model="demo")
    assert {key: doctor[key] for key in expected} == expected
    wanted = "print([facts.check.max_logit_error, encoding.perplexity, encoding.dim])"
    shown = json.loads(in_a_process(sys.executable, "-c", f"{share.python(view)}\n{wanted}").splitlines()[-1])
    assert shown == [facts.check.max_logit_error, analysis.encoding().perplexity, 160]


@pytest.mark.parametrize("figure", ["Fit", "Weights", "Sparsity", "Why", "Map", "Tokens"])
def test_encoding(analysis: Analysis, figure: str, tmp_path: Path) -> None:
    view = View("encoding", DEMO, figure=figure)
    if figure in ("Fit", "Weights"):
        command = share.command(view).replace("weights.csv", str(tmp_path / "weights.csv"))
        close(without_times(in_a_shell(command)[0]), without_times(fitted(analysis)))
        assert (tmp_path / "weights.csv").is_file() == (figure == "Weights")
    code = share.python(view)
    made = code.splitlines()[-1]
    shown = in_python(code, f"[encoding.r2, encoding.r2_held_out_text, type({made}).__name__]")
    found = analysis.encoding()
    assert shown == [found.r2, found.r2_held_out_text, "DataFrame" if figure == "Tokens" else "Chart"]


@pytest.mark.parametrize(
    ("direction", "calibrate", "figure"), [("minimum-variance", True, "Result"), ("saliency", False, "Side effects")]
)
def test_steering(analysis: Analysis, direction: str, calibrate: bool, figure: str) -> None:
    chosen = steered(analysis)
    view = View(
        "steering",
        DEMO,
        chosen,
        (" river", " \n"),
        direction,
        calibrate,
        prompt=PROMPT if calibrate else None,
        figure=figure,
    )
    found = analysis.steer(chosen, direction, calibrate)
    at_prompt = analysis.next_token(PROMPT, found) if calibrate else None
    baselines = analysis.baselines(chosen)
    expected = summary.steer(found, model="demo", corpus="sampler", baselines=baselines, at_prompt=at_prompt)
    close(in_a_shell(share.command(view))[0], expected)
    shown = in_python(share.python(view), "[[t.realised_held_out, t.token] for t in steering.tokens]")
    close(shown, [[t.realised_held_out, t.token] for t in found.tokens])


def test_few_positions(analysis: Analysis) -> None:
    chosen = steered(analysis)
    view = View("steering", DEMO, chosen, figure="Few positions")
    found = analysis.few_shot(chosen)
    told = in_a_shell(share.command(view))[0]["few_shot"]
    close(told, [vars(point) for point in found])
    close(in_python(share.python(view), "[vars(point) for point in few_shot]"), told)


@pytest.mark.parametrize("edited", [True, False])
def test_samples(analysis: Analysis, edited: bool) -> None:
    chosen = steered(analysis) if edited else ()
    sampling = Sampling(2, 8, 0.7, 50, 0.9, 5) if edited else Sampling(2, 8)
    view = View("samples", DEMO, chosen, prompt=PROMPT, sampling=sampling)
    found = analysis.generate(PROMPT, analysis.steer(chosen) if chosen else None, sampling)
    close(in_a_shell(share.command(view))[0], summary.texts(found, model="demo"))
    shown = in_python(share.python(view), "[texts.before_texts, texts.after_texts]")
    assert shown == [list(found.before_texts), list(found.after_texts)]


def test_dynamics() -> None:
    view = View("dynamics", DEMO, series="demo")
    expected = series_summary(bundled())
    close(in_a_shell(share.command(view))[0], expected)
    assert in_python(share.python(view), "[found.step_frequency_90, found.step_loss_90]") == [
        expected["step_frequency_90"],
        expected["step_loss_90"],
    ]


def test_a_training_run_is_named_as_the_page_trains_it() -> None:
    view = View("dynamics", DEMO, series="train:small:7:python-docs")
    assert share.command(view) == "headscope dynamics --train --size small --corpus python-docs --seed 7"
    assert 'train_series("python-docs", replace(SIZES["small"], seed=7))' in share.python(view)


def test_the_report_of_a_page(analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job writes it, and its command writes the same but for the time."""
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    chosen = steered(analysis)[:1]
    view = View("steering", DEMO, chosen, prompt="It's", figure="Result")
    path = handout.write(view, lambda phrase, share: None)
    assert path.parent == Store().folder / "reports"
    command = share.report_command(view).replace("report.html", str(tmp_path / "r.html"))
    told = in_a_shell(command)[0]
    assert told["figures"] == 13

    def lines(file: Path) -> str:
        return file.read_text("utf-8").partition("Where these numbers come from")[0]

    assert lines(path) == lines(tmp_path / "r.html") and len(lines(path)) > 10_000


# --- whatever stands in them ------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
NAME = TEXT.filter(lambda text: text.strip())


@given(NAME, NAME, TEXT, TEXT)
def test_any_text_stays_one_argument(model: str, corpus: str, prompt: str, token: str) -> None:
    edit = (Edit(7, 1 / 3),)
    view = View("steering", Choice(model, corpus), edit, (token,), prompt=prompt)
    arguments = shlex.split(share.command(view))
    told = arguments[-1] if "--" in arguments[:-1] and model.startswith("-") else arguments[2]
    assert told == model
    for option, value in (("--corpus", corpus), ("--prompt", prompt)):
        joined = f"{option}={value}" in arguments
        assert joined == value.startswith("-")
        assert joined or arguments[arguments.index(option) + 1] == value
    assert "id:7" in arguments and str(1 / 3) in arguments


@given(NAME, NAME, TEXT, TEXT)
def test_any_text_stays_one_literal(model: str, corpus: str, prompt: str, token: str) -> None:
    view = View("samples", Choice(model, corpus, 4096, 9), (Edit(7, 0.3),), (token,), prompt=prompt)
    tree = ast.parse(share.python(view))
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""): node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert [ast.literal_eval(a) for a in calls["Analysis"].args[:2]] == [model, corpus]
    assert ast.literal_eval(calls["generate"].args[0]) == prompt
    assert [ast.literal_eval(a) for a in calls["Edit"].args] == [7, 0.3]
    settings = {k.arg: ast.literal_eval(k.value) for k in calls["Settings"].keywords}
    assert settings == {"positions": 4096, "seed": 9}


def test_an_operand_that_looks_like_an_option_stays_an_operand() -> None:
    view = View("encoding", Choice("--json=/etc/passwd", "-x"))
    assert shlex.split(share.command(view))[-2:] == ["--", "--json=/etc/passwd"]
    assert "--corpus=-x" in shlex.split(share.command(view))


def test_an_uploaded_text_is_named_as_the_visitors_own_file() -> None:
    view = View("encoding", Choice("demo", "upload:0123456789abcdef/my-notes.txt"))
    assert "--corpus my-notes.txt" in share.command(view) and '"my-notes.txt"' in share.python(view)


# --- addresses --------------------------------------------------------------------------------------------------------


def address(test: AppTest) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value[0] for key, value in test.query_params.items()}


def shown(test: AppTest) -> tuple[Any, ...]:
    """Everything that a page shows: texts, figures, tables, what the live sliders were sent."""
    figures = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    live = [json.loads(each.proto.json) for each in test.get("bidi_component")]
    tables = [table.value.to_csv() for table in test.dataframe]
    return text_of(test), figures, live, tables, [code.value for code in test.code]


def revisit(visit: Visit, page: str, test: AppTest) -> AppTest:
    """The address of a page, opened by somebody else."""
    again = visit(page, **address(test))
    assert not again.exception
    return again


@pytest.mark.parametrize(
    ("page", "query"),
    [
        ("model", {}),
        *[("encoding", {"view": view}) for view in ("Fit", "Weights", "Sparsity", "Why", "Map", "Tokens")],
        *[("steering", {"figure": figure}) for figure in ("Result", "Side effects", "Few positions")],
        ("steering", {"direction": "top-k:10", "calibrate": "0", "name": "more water", "prompt": "<b>&=%"}),
        ("samples", {"samples": "3", "new-tokens": "7", "temperature": "0.7", "top-k": "9", "top-p": "0.35"}),
        ("dynamics", {"step": "64"}),
    ],
)
def test_an_address_restores_the_page(visit: Visit, page: str, query: dict[str, str]) -> None:
    ratios = ",".join(f"{i}:{_exactly(ratio)}" for i, ratio in ((RIVER, 1 / 3), (4, edits.RATIOS[1]), (0, 1e-5)))
    first = visit(page, model="smollm2", positions="4096", seed="3", edit=ratios, chat="1", **query)
    assert not first.exception
    kept = address(first)
    assert {"model": "smollm2", "positions": "4096", "seed": "3", "edit": ratios}.items() <= kept.items()
    assert {
        item for item in query.items() if item[1] not in ("Fit", "Result")
    } <= kept.items()  # defaults need not be said
    assert shown(revisit(visit, page, first)) == shown(first)


@pytest.mark.parametrize(
    "query",
    [
        {"find-token": "<word1"},
        {"view": "Weights", "weights-what": "saliency", "weights-order": "index"},
        {"view": "Tokens", "tokens-search": "river", "tokens-order": "most probable"},
    ],
)
def test_an_address_says_what_is_looked_for(visit: Visit, query: dict[str, str]) -> None:
    """Whether the address follows the widgets is for the browser: there it is kept."""
    plain_view = shown(visit("encoding", model="smollm2", view=query.get("view", "Fit")))
    test = visit("encoding", model="smollm2", **query)
    assert not test.exception and shown(test)[:4] != plain_view[:4]
    assert "<word1" not in text_of(test)


def test_an_emptied_list_stays_empty_for_others_too(visit: Visit) -> None:
    test = visit("steering", model="smollm2")
    assert len(address(test)["edit"]) > 3
    test.button(key="clear").click().run()
    assert address(test)["edit"] == "none"
    assert "Add a token below" in text_of(revisit(visit, "steering", test))


def test_a_link_to_the_demo_finds_its_results(visit: Visit) -> None:
    assert address(visit("encoding", model="demo"))["positions"] == "8192"
    assert address(visit("encoding", model="demo", positions="16384"))["positions"] == "16384"


@pytest.mark.parametrize(
    "query",
    [{"samples": "0"}, {"samples": "99"}, {"temperature": "nan"}, {"top-p": "2"}, {"top-k": "-1"}, {"edit": ""}],
)
def test_a_bad_address_falls_back_in_silence(visit: Visit, query: dict[str, str]) -> None:
    test = visit("samples", model="smollm2", **query)
    assert not test.exception and not test.error
    assert query.items().isdisjoint(address(test).items())


@given(st.floats(1e-6, 1e6))
def test_a_ratio_reads_back_the_same(ratio: float) -> None:
    assert float(_exactly(ratio)) == ratio


def test_what_is_offered_to_copy_is_what_the_page_shows(visit: Visit) -> None:
    """Command and Python of the page, and its JSON, are those of the very edit that is shown."""
    test = visit("steering", model="smollm2", edit=f"{RIVER}:4,0:0.5", prompt="a 'b'", direction="saliency")
    told, command, python = (code.value for code in test.code)
    assert told.startswith("?model=smollm2") and "edit=" in told
    view = View(
        "steering", Choice("smollm2", "sampler", 16384), (Edit(RIVER, 4.0), Edit(0, 0.5)),
        (" river", "<script>alert(1)</script>"), "saliency", prompt="a 'b'", figure="Result",
    )  # fmt: skip
    assert command == share.command(view) and python == share.python(view).rstrip()
    test.button(key="reset").click().run()
    assert f"--token id:{RIVER} --ratio 1 " in test.code[1].value


def test_a_report_that_cannot_be_begun_says_so(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise InputError("100 requests are waiting already: try again in a few minutes.")

    test = visit("encoding", model="smollm2", edit=f"{RIVER}:4", view="Why")
    monkeypatch.setattr(jobs.Lane, "submit", full)
    test.button(key="share-report").click().run()
    assert [read(error) for error in test.error] == ["100 requests are waiting already: try again in a few minutes."]


def offered(test: AppTest, key: str) -> None:
    """Run again until there is such a button."""
    end = time.monotonic() + 20
    while key not in [each.key for each in (*test.button, *test.get("download_button"))]:
        assert time.monotonic() < end, key
        test.run()


def test_a_report_is_written_as_a_job(visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[View] = []

    def write(shown: View, progress: object) -> Path:
        written.append(shown)
        path = tmp_path / "report.html"
        path.write_text("a report")
        return path

    monkeypatch.setattr(handout, "write", write)
    test = visit("encoding", model="smollm2", edit=f"{RIVER}:4", view="Why")
    test.button(key="share-report").click().run()
    offered(test, "share-report-file")
    assert not test.exception
    assert written == [View("", Choice("smollm2", "sampler", 16384), (Edit(RIVER, 4.0),), (" river",))]
    test.button_group(key="view").set_value(["Map"]).run()
    assert "share-report" not in [button.key for button in settled(test).button]  # the same report: it is there


def test_a_report_that_failed_is_written_again_at_one_press(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"

    def write(*_: object) -> Path:
        if not report.exists():
            raise AnalysisError("The disk is full.")
        return report

    monkeypatch.setattr(handout, "write", write)
    test = visit("encoding", model="smollm2", edit=f"{RIVER}:4", view="Why")
    test.button(key="share-report").click().run()
    offered(test, "share-report-again")
    assert "The disk is full" in text_of(test)
    report.write_text("a report")
    test.button(key="share-report-again").click().run()
    assert "share-report" not in [each.key for each in test.button] and "The disk is full" not in text_of(test)
    offered(test, "share-report-file")


def test_a_report_that_cannot_be_kept_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file where the folder would be")
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "open_analysis", lambda choice: ArrayAnalysis())
    monkeypatch.setattr("core.report.report_of", lambda *_, **__: None)
    monkeypatch.setattr("core.report.page", lambda found: "<p>\ud800</p>")
    with pytest.raises(
        InputError, match=r"^The report cannot be kept in Headscope's cache \('reports' is no folder\)"
    ) as caught:
        handout.write(View("", DEMO), lambda phrase, share: None)
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "reports").unlink()
    assert handout.write(View("", DEMO), lambda phrase, share: None).read_text("utf-8") == "<p>\ufffd</p>"


def test_a_report_that_made_room_says_so(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("a report")
    assert handout._read(report) == b"a report" and handout._size(report) == 8
    report.unlink()
    assert b"has made room for newer ones" in handout._read(report) and handout._size(report) is None


def test_hostile_texts_stay_text(visit: Visit) -> None:
    analysis = ArrayAnalysis()
    test = visit("steering", analysis, model="smollm2", edit=",".join(f"{i}:2" for i in range(8)), prompt="</code>")
    assert not test.exception
    assert "<script" not in text_of(test)
    assert "'<script>alert(1)</script>'" in test.code[2].value and ast.parse(test.code[2].value)


def test_results_are_numbers_of_the_page() -> None:
    """`close` can fail."""
    with pytest.raises(AssertionError):
        close({"a": [1.0, 2.0]}, {"a": [1.0, 2.001]})
    with pytest.raises(AssertionError):
        close({"a": 1}, {"a": 1, "b": 2})
    close({"a": np.float64(1.0)}, {"a": 1.0})


def test_checkpoints_with_an_open_quotation_mark_are_one_name() -> None:
    view = View("dynamics", DEMO, series="'unclosed")
    assert shlex.split(share.command(view))[-1] == "'unclosed"
    ast.parse(share.python(view))
    with pytest.raises(InputError, match=r"'unclosed.*a quotation mark is not closed"):
        runs.places("'unclosed")
