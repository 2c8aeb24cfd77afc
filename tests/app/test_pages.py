"""Every page: what it says, what it draws, and that nothing a visitor does breaks it."""

from __future__ import annotations

import errno
import html
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app import begun, cache, jobs, runs, sidebar, state, uploads
from app.environment import AUDIENCE_VARIABLE
from app.lesson import keys
from app.lesson.steps import STEPS
from app.live import knobs
from app.views.encoding import find_tokens
from core.encoding import Encoding
from core.errors import AnalysisError, InputError
from core.export.place import PREFIX
from core.figures import words
from core.kept import bundled
from core.settings import Progress, no_progress
from core.steering import Edit
from core.store import Store, Unkept
from tests.app.arrays import RIVER, TOKENS, ArrayAnalysis, facts, planted
from tests.app.conftest import MAIN, read, settled, text_of

Visit = Callable[..., AppTest]
EDIT = f"{RIVER}:4"
PAIR = '<div class="hs-pair">'


def charts(test: AppTest) -> list[dict]:
    live = [part.proto for part in test.get("bidi_component") if part.proto.component_name.endswith("_plot")]
    return [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")] + [
        json.loads(part.json)["figure"] for part in live
    ]


def button(test: AppTest, label: str):
    return next(b for b in test.button if b.label == label)


def param(test: AppTest, key: str) -> str:
    value = test.query_params[key]
    return value if isinstance(value, str) else value[0]


def export_form() -> None:
    """A page that holds nothing but the form with which Pruning exports."""
    from app import state
    from app.views.pruning import _export
    from tests.app.arrays import planted

    state.start()
    _export(state.choice(), planted()[2], ["saliency"], 0.3)


def fine(test: AppTest) -> AppTest:
    assert not test.exception
    assert not test.error, [e.value for e in test.error]
    return test


PAGES = ("model", "encoding", "steering", "samples", "dynamics", "method")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_asks_a_question_and_is_filled_at_the_first_visit(visit: Visit, page: str) -> None:
    test = fine(visit(page))
    assert test.title[0].value.endswith("?")
    assert "Choose a model" not in text_of(test)
    if page != "method":
        assert len(charts(test)) >= 1 or "hs-pair" in text_of(test)


@pytest.mark.parametrize("page", PAGES)
def test_a_field_that_is_emptied_keeps_its_choice(visit: Visit, page: str) -> None:
    """A slow browser sends fields empty that it has not filled yet: nobody emptied them, and no edit is lost."""
    test = visit(page, model="smollm2", corpus="python-docs", positions="4096", seed="7", edit=EDIT)
    before = {key: test.query_params.get(key) for key in ("model", "corpus", "positions", "seed", "edit")}
    test.selectbox(key="model").set_value(None)
    test.selectbox(key="corpus").set_value(None)
    test.number_input(key="seed").set_value(None)
    fine(test.run())
    assert {key: test.query_params.get(key) for key in before} == before
    assert test.selectbox(key="model").value == "smollm2" and test.number_input(key="seed").value == 7


@pytest.mark.parametrize("key", ["model", "corpus", "seed"])
def test_a_field_lost_while_the_page_is_drawn_keeps_its_choice(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Streamlit forgets the fields of a run that it cuts short, and may do so while the next one is being drawn."""
    test = visit("encoding", model="smollm2", corpus="python-docs", seed="7")
    shown = text_of(fine(test))
    draw = sidebar.draw

    def lost() -> None:
        del state.st.session_state[key]
        draw()

    monkeypatch.setattr(sidebar, "draw", lost)
    fine(test.run())
    assert text_of(test) == shown
    monkeypatch.setattr(sidebar, "draw", draw)
    assert param(fine(test.run()), key) == {"model": "smollm2", "corpus": "python-docs", "seed": "7"}[key]


def test_a_column_of_the_text_that_was_uploaded_is_named_by_its_short_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    path = uploads.keep("rows.csv", b"a,b\n1,2\n")
    for shown, typed, meant in (
        (path, "rows.csv:a", f"{path}:a"),
        (f"{path}:a", "rows.csv:b", f"{path}:b"),
        (path, "other.csv:b", "other.csv:b"),
        ("sampler", "rows.csv:a", "rows.csv:a"),
    ):
        monkeypatch.setattr(state.st, "session_state", {"last-corpus": shown, "corpus": typed})
        sidebar._column_of_an_upload()
        assert state.chosen("corpus") == meant


def test_a_fraction_that_is_not_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.st, "session_state", {"removed": 0.99})
    assert state.keep_fraction(cache.PRUNED) == 0.9 and state.unread("removed") == "99 %"
    monkeypatch.setattr(state.st, "session_state", {"removed": 0.3})
    assert state.keep_fraction(cache.PRUNED) == 0.3 and state.unread("removed") is None


def test_the_welcome_starts_an_analysis_by_itself(visit: Visit) -> None:
    test = visit("model", ArrayAnalysis(stored=False))
    button(test, "Start with SmolLM2-135M").click().run()
    fine(settled(test))
    assert param(test, "model") == "smollm2"
    assert "240 tokens × 6 dimensions" in text_of(test)
    assert len(charts(test)) == 2


@pytest.mark.parametrize("view", ["Fit", "Weights", "Sparsity", "Why", "Map", "Tokens"])
def test_encoding(visit: Visit, view: str) -> None:
    test = fine(visit("encoding", model="smollm2", view=view))
    known = planted()[2]
    assert f"explains <b>{100 * known.r2:.0f} %</b>" in text_of(test)
    assert len(charts(test)) == (0 if view == "Tokens" else 1)
    if view == "Fit":
        assert len(charts(test)[0]["data"]) == 3
    if view == "Why":
        assert ("does not hold for this model" in text_of(test)) == (known.log_z_std > 1)


def test_a_token_is_found_on_the_fit(visit: Visit) -> None:
    test = visit("encoding", model="smollm2", edit=f"{TOKENS.index('2020')}:4")
    test.text_input(key="find-token").input("word1").run()
    known, at = planted()[2], TOKENS.index(" word1")
    assert words.one_in(float(known.alpha[at])) in text_of(fine(test))
    assert words.one_in(float(np.exp(-known.predicted[at]))) in text_of(test)
    assert [list(trace["text"]) for trace in charts(test)[0]["data"][-2:]] == [["2020"], ["␣word1"]]
    test.text_input(key="find-token").input("<nothing>").run()
    assert "No token contains" in text_of(fine(test)) and "<nothing>" not in text_of(test)
    assert len(charts(test)[0]["data"]) == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" river", {" river"}),
        ("river", {"river"}),
        ("word1", {" word1"}),
        ("IVER", {" river", "river"}),
        ("", set()),
        ("zzz", set()),
    ],
)
def test_what_a_text_finds(text: str, found: set[str]) -> None:
    places = find_tokens(planted()[2], text)
    assert {TOKENS[place] for place in places} == found and len(set(places)) == len(places)
    assert len(find_tokens(planted()[2], "ord")) == 8


def test_pages_fill_from_the_store_without_a_job(visit: Visit, lanes: dict[str, jobs.Lane]) -> None:
    fine(visit("encoding", model="smollm2"))
    assert not [key for key in lanes["analyses"]._jobs if key[0] == "encode"]


def test_the_token_table_can_be_searched(visit: Visit) -> None:
    test = visit("encoding", model="smollm2", view="Tokens")
    test.text_input(key="tokens-search").input("river").run()
    fine(test)
    assert "3 tokens" in text_of(test)
    assert set(test.dataframe[0].value["token"]) == {"␣river", "river"}


def live(test: AppTest) -> dict:
    """What the live sliders were sent."""
    return json.loads(test.get("bidi_component")[0].proto.json)


@pytest.mark.parametrize("view", ["Result", "Side effects", "Few positions"])
def test_steering(visit: Visit, view: str) -> None:
    test = visit("steering", model="smollm2", edit=EDIT, figure=view)
    if view == "Few positions":
        test.button(key="few-start").click().run()
        settled(test)
    fine(test)
    assert "asked 4×, got <b>" in text_of(test)
    assert len(charts(test)) == 1
    titles = {"Result": "Asked", "Side effects": "else moves"}
    assert titles.get(view, "Estimated from") in text_of(test)


def test_the_live_sliders_get_numbers_that_give_the_edit(visit: Visit) -> None:
    """What the browser works out from the numbers is what was solved here."""
    data = live(fine(visit("steering", model="smollm2", edit=f"{RIVER}:4,0:0.5")))
    assert [edit["id"] for edit in data["edits"]] == [RIVER, 0] and data["calibrated"]
    assert [edit["ratio"] for edit in data["edits"]] == [4, 0.5]
    for edit in data["edits"]:
        curve = edit["curve"]
        assert np.exp(np.interp(edit["step"], curve["steps"], curve["logRealised"])) == pytest.approx(
            edit["ratio"], rel=0.02
        )
        assert (np.diff(curve["logRealised"]) >= 0).all() and min(curve["kl"]) >= 0
        assert edit["p"] == next(row["before"] for row in data["shown"] if row["id"] == edit["id"])
    steered = {row["id"]: row["edit"] for row in data["shown"] if row["edit"] is not None}
    assert steered == {RIVER: 0, 0: 1}
    assert data["figures"]["next"]["summary"] and data["figures"]["range"]["figure"]["data"]


def test_a_ratio_changes_and_undo_takes_it_back(visit: Visit) -> None:
    test = visit("steering", model="smollm2", edit=EDIT)
    test.button(key="reset").click().run()
    assert "asked 1×" in text_of(fine(test))
    assert param(test, "edit") == f"{RIVER}:1"
    test.button(key="undo").click().run()
    assert "asked 4×" in text_of(fine(test))
    test.button(key="clear").click().run()
    assert "Add a token below" in text_of(fine(test))


def test_a_list_that_cannot_be_solved_keeps_its_sliders(visit: Visit) -> None:
    every = ",".join(f"{i}:100" for i in range(9))
    test = visit("steering", model="smollm2", edit=every)
    sliders = [s for s in test.select_slider if s.key.startswith("ratio-")]
    assert len(test.error) == 1 and len(sliders) == 9
    labels = [s.label for s in sliders]
    assert any(label.startswith("`$x$`") for label in labels)
    assert any(label.startswith("`` `tick` ``") for label in labels)
    for slider in sliders:
        slider.set_value(1.0)
    test.run()
    assert "asked 1×" in text_of(fine(test))


def test_a_token_is_added_by_typing(visit: Visit) -> None:
    test = visit("steering", model="smollm2")
    test.text_input(key="add-token").input("river").run()
    labels = [b.label for b in test.button if (b.key or "").startswith("suggest-")]
    assert "`␣river`" in labels and "`river`" in labels
    test.button(key=f"suggest-{RIVER}").click().run()
    assert "asked" in text_of(fine(test))
    assert f"{RIVER}:" in param(test, "edit")


def test_a_first_visitor_finds_one_token_steered(visit: Visit) -> None:
    test = fine(visit("steering", model="smollm2"))
    assert "asked" in text_of(test) and param(test, "edit")
    test.button(key="clear").click().run()
    assert "Add a token below" in text_of(fine(test.run()))  # a list that was emptied stays empty


def test_a_first_visitor_finds_texts(visit: Visit) -> None:
    test = fine(visit("samples", model="smollm2"))
    assert PAIR in text_of(test) and "expected" in text_of(test)


def test_a_word_of_several_tokens_is_explained(visit: Visit) -> None:
    test = visit("steering", model="smollm2")
    test.text_input(key="add-token").input(" rivers").run()
    assert "is 2 tokens" in text_of(fine(test))


def test_hostile_tokens_stay_text(visit: Visit) -> None:
    every = ",".join(f"{i}:2" for i in range(9))
    test = fine(visit("steering", model="smollm2", edit=every))
    assert "<script>alert" not in text_of(test)
    assert "&lt;script&gt;alert" in text_of(test)


@pytest.mark.parametrize(
    "query",
    [
        {"edit": "x:y"},
        {"edit": f"{RIVER}:-1"},
        {"edit": f"{RIVER}:nan"},
        {"edit": "-5:2"},
        {"positions": "17"},
        {"seed": "-1"},
        {"direction": "sideways"},
        {"calibrate": "false"},
        {"chat": "banana"},
        {"present": "yes"},
        {"seed": "\u0663"},
        {"noise-seed": "1_0"},
        {"samples": "100000"},
        {"temperature": "nan"},
        {"lesson": str(len(STEPS) + 1)},
        {"prompt": "<b>", "seed": "<script>alert(1)</script>"},
    ],
)
def test_what_an_address_asks_for_in_vain_is_said_once(visit: Visit, query: dict[str, str]) -> None:
    test = visit("model", model="smollm2", **query)
    key, value = list(query.items())[-1]
    assert not test.exception and len(test.error) == 1
    said = read(test.error[0])
    assert f"The address asks for {key} = '{value}', but it must be " in said
    fine(test.switch_page("views/steering.py").run())
    fine(test.switch_page("views/encoding.py").run())


@pytest.mark.parametrize(
    ("page", "query"),
    [
        ("steering", {}),
        ("samples", {}),
        ("learn", {"lesson": "3"}),
        ("learn", {"lesson": "5"}),
    ],
)
def test_a_token_of_an_address_that_the_model_never_gives(visit: Visit, page: str, query: dict[str, str]) -> None:
    test = visit(page, model="smollm2", edit="999999999:2", **query)
    for _ in range(100):  # where a prompt is worked out the model is loaded first
        if "river" in text_of(test):
            break
        time.sleep(0.05)
        test.run()
    assert [read(error) for error in test.error] == [
        "Token 999999999 cannot be steered, for this model does not have it, or never gives it here: it was left away."
    ]
    assert "␣river" in text_of(test) and not test.exception  # the one that a first visitor finds


def test_a_step_of_an_address_that_was_not_kept(visit: Visit) -> None:
    test = fine(visit("dynamics", step="77"))
    assert "Step 77 is none of the checkpoints of this series: the nearest is shown, 64." in text_of(test)
    test.select_slider(key="step-slider").set_value(128).run()
    assert "none of the checkpoints" not in text_of(test) and param(test, "step") == "128"
    assert "none of the checkpoints" not in text_of(fine(visit("dynamics", step="64")))


def test_every_page_says_that_results_cannot_be_kept(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.store._unkept", {Store().folder: Unkept("No space left on device", errno.ENOSPC, 2**62)})
    test = fine(visit("method"))
    assert "Results cannot be kept on the disk of this server (No space left on device)" in text_of(test)


@pytest.mark.parametrize("full", [False, True])
def test_nothing_is_called_kept_that_cannot_be(
    visit: Visit, lanes: dict[str, jobs.Lane], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Neither while something is computed nor when that was cancelled."""
    if full:
        monkeypatch.setattr(
            "core.store._unkept", {Store().folder: Unkept("No space left on device", errno.ENOSPC, 2**62)}
        )
    begun, go_on = threading.Event(), threading.Event()

    class Slow(ArrayAnalysis):
        def cached_encoding(self) -> None:
            return None

        def encoding(self, progress: Progress = no_progress) -> Encoding:
            begun.set()
            go_on.wait(30)
            progress("Fitting", 0.5)
            return super().encoding(progress)

    test = AppTest.from_file(str(MAIN), default_timeout=30)
    monkeypatch.setattr(cache, "open_analysis", lambda choice: Slow())
    test.query_params["model"] = "smollm2"
    test.run()
    test.switch_page("views/encoding.py").run()
    assert begun.wait(30)
    assert "It goes on if this page is closed" in text_of(test)
    assert ("the result is kept" in text_of(test)) != full
    test.button("job-cancel").click().run()
    go_on.set()
    (job,) = [job for key, job in lanes["analyses"]._jobs.items()]
    assert job.finished.wait(30)
    test.run()
    assert [info.value.startswith("Cancelled.") for info in test.info] == [True]
    assert ("What was finished of the analysis is kept" in test.info[0].value) != full


def test_many_tokens_that_the_model_never_gives_are_named_together(visit: Visit) -> None:
    def said(*numbers: int) -> str:
        test = visit("steering", model="smollm2", edit=",".join(f"{number}:2" for number in numbers) + f",{EDIT}")
        assert "river" in text_of(test)
        return read(test.error[0])

    start = 999999990
    assert said(start, start + 1).startswith(
        f"Tokens {start}, {start + 1} cannot be steered, for this model does not have them, or never gives them"
    )
    assert f"{start + 4} and 2 more cannot" in said(*range(start, start + 7))


def test_an_export_says_which_token_it_cannot_steer() -> None:
    test = AppTest.from_function(export_form)
    test.query_params["edit"] = f"999999999:2,{EDIT}"
    test.run()
    assert "Token 999999999 cannot be steered" in test.error[0].value and not test.exception
    assert test.toggle(key="export-steer").label == "Steer: `␣river` 4×"


def test_what_an_address_asks_for_is_taken_in_part_and_that_is_said(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ",".join(f"{i}:2" for i in range(1000))
    test = visit("model", model="smollm2", edit=many)
    assert [read(error) for error in test.error] == [
        "The address names 1,000 tokens to steer: the first 15, the most at once, were taken."
    ]
    assert param(test, "edit").count(":") == 15
    rows = ",".join(f"smollm2|sampler|{n}" for n in [1024, 4096] * 6)
    assert "names 12 rows to compare: the first 8, the most at once, were taken." in read(
        visit("model", model="smollm2", rows=rows).error[0]
    )
    fine(visit("model", model="smollm2", edit=",".join([EDIT] * 16)))
    monkeypatch.setenv(AUDIENCE_VARIABLE, "public")
    test = visit("model", model="demo", prompt="a" * 600)
    assert [read(error) for error in test.error] == [
        "The prompt of the address has 600 characters: the first 500, the most, were taken."
    ]


@pytest.mark.parametrize("value", [0.5, 3, [1, 2], ["a"]])
def test_a_field_that_a_message_made_by_hand_fills(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"session": "me", "prompt": value, "name": value, "corpus": "sampler", "model": "demo"}
    monkeypatch.setattr(state, "st", SimpleNamespace(session_state=there))
    state.start()
    assert (there["prompt"], there["name"], there["corpus"]) == (state.DEFAULT_PROMPT, "", "sampler")


def test_a_name_of_an_address_that_is_too_long(visit: Visit) -> None:
    said = read(visit("model", model="smollm2", name="n" * 100).error[0])
    assert said == "The name in the address has 100 characters: the first 60, the most, were taken."


def test_what_an_address_gives_twice_is_said(visit: Visit) -> None:
    test = AppTest.from_file(str(MAIN), default_timeout=30)
    test.query_params["direction"] = ["saliency", "uniform"]
    assert "gives direction 2 times: the last one, 'uniform', was taken" in read(test.run().error[0])


@pytest.mark.parametrize(
    ("page", "address", "told"),
    [
        ("encoding", {"view": "<b>Nothing</b>"}, "view = '<b>Nothing</b>', which is none of Fit, Weights, Sparsity"),
        ("encoding", {"view": "Tokens", "tokens-kind": "river"}, "tokens-kind = 'river', which is none of all kinds, "),
        (
            "encoding",
            {"view": "Weights", "weights-order": "Index"},
            "which is none of saliency, index: saliency is shown.",
        ),
        ("steering", {"figure": "result"}, "which is none of Result, Side effects, Few positions: Result is shown."),
        ("encoding", {"view": "x" * 500}, f"view = '{'x' * 37}...', which is none of Fit, "),
    ],
)
def test_a_view_that_is_none_is_said(visit: Visit, page: str, address: dict[str, str], told: str) -> None:
    test = asking(visit(page, **address), page, {key: [value] for key, value in address.items()})
    assert [read(each) for each in test.error if told in read(each)]
    assert not visit(page).error


def asking(test: AppTest, page: str, asked: dict[str, list[str]]) -> AppTest:
    """As a browser shows it that came by this address to this page; `visit` comes by way of the first page."""
    test.session_state["opened-on"], test.session_state["asked"] = page, asked
    return test.run()


def test_a_view_that_was_picked_is_not_told_of_again(visit: Visit) -> None:
    test = asking(visit("encoding"), "encoding", {"view": ["zzz"]})
    assert "which is none of" in read(test.error[0])
    for picked in ("Weights", "Fit"):
        test.session_state["view"] = picked
        assert not test.run().error
    again = asking(visit("encoding"), "encoding", {"view": ["Fit", "Map"]})
    assert read(again.error[0]) == "The address gives view 2 times: the first one, 'Fit', was taken."


def test_what_is_cut_of_a_search_is_said(visit: Visit) -> None:
    for page, key, address in (("encoding", "find-token", {}), ("encoding", "tokens-search", {"view": "Tokens"})):
        test = asking(visit(page, **address, **{key: "z" * 200}), page, {key: ["z" * 300]})
        assert read(test.error[0]) == (
            f"The address gives {key} with 300 characters, and at most 200 are taken: the first ones were."
        )
        test.text_input(key=key).set_value("river")
        assert not test.run().error


def test_a_view_that_is_one_is_shown_without_a_word(visit: Visit) -> None:
    assert not visit("encoding", view="Tokens", **{"tokens-order": "id"}).error


def test_a_class_is_told_that_an_address_chooses_nothing(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUDIENCE_VARIABLE, "classroom")
    said = read(visit("model", model="/etc", seed="7").error[0])
    assert said.startswith("A class works with what was chosen for it") and said.endswith("Shown is demo on sampler.")
    fine(visit("model"))


@pytest.mark.parametrize("page", ["model", "encoding", "steering", "samples", "dynamics", "compare", "learn"])
def test_no_field_takes_text_without_end(visit: Visit, page: str) -> None:
    """Streamlit cuts what is longer, whoever sends it; prompts have a limit of their own, with a sentence."""
    for lesson in range(1, len(STEPS) + 1) if page == "learn" else (1,):
        test = visit(page, model="smollm2", edit=EDIT, lesson=str(lesson))
        fields = {field.key: field.proto.max_chars for field in test.text_input if field.key != "prompt"}
        assert all(0 < most <= state.MOST_PATH for most in fields.values()), fields
    assert fields or page in ("model", "samples", "dynamics", "learn")


@pytest.mark.parametrize(
    ("ask", "press"),
    [("few_shot", "few-start"), ("pruned_cost", "prune-measure-cost"), ("pruned_texts", "prune-write")],
)
def test_a_button_says_that_the_line_is_full(ask: str, press: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def views(ask: str) -> None:
        from types import SimpleNamespace

        from app import state
        from app.views import pruning, steering
        from tests.app.arrays import planted

        state.start()
        encoding = planted()[2]
        if ask == "few_shot":
            steering._few(state.choice(), SimpleNamespace(direction="saliency"), encoding)
        else:
            {"pruned_cost": pruning._cost, "pruned_texts": pruning._texts}[ask](state.choice(), ["saliency"], 0.3)

    def full(*_: object) -> None:
        raise InputError("100 requests are waiting already: try again in a few minutes.")

    monkeypatch.setattr(cache, ask, full)
    test = AppTest.from_function(views, kwargs={"ask": ask}).run()
    test.button(key=press).click().run()
    assert [read(error) for error in test.error] == ["100 requests are waiting already: try again in a few minutes."]
    assert not test.exception


def test_an_export_that_is_under_way_is_not_taken_for_another() -> None:
    over = threading.Event()
    test = AppTest.from_function(export_form)
    test.run()
    choice = state.Choice("demo", positions=8192)
    job = jobs.generation().submit(("export", choice, "out"), "Exporting", lambda progress: over.wait(20))
    test.text_input(key="export-folder").set_value("out")
    next(button for button in test.button if button.label == "Export").click()
    said = [read(error) for error in test.run().error]
    over.set()
    assert job.finished.wait(5)
    assert said == ["An export to that folder is under way: wait for its end, or name another folder."]


def test_export_pressed_twice_shows_the_one_that_runs_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def exported(progress: Progress) -> None:
        assert over.wait(20)
        raise AnalysisError("Seen to its end.")

    def begin(choice: state.Choice, folder: str, *_: object) -> None:
        key = ("export", choice, folder)
        if jobs.generation().find(key) is not None:
            raise InputError("An export to that folder is under way.")
        jobs.generation().submit(key, "Exporting", exported)

    monkeypatch.setattr(cache, "export", begin)
    test = AppTest.from_function(export_form)
    test.run()
    test.text_input(key="export-folder").set_value("out")
    for _ in range(2):
        button(test, "Export").click().run()
    assert [read(toast) for toast in test.toast] == ["An export to that folder is under way."] and not test.error
    assert button(test, "Cancel")
    over.set()
    (job,) = jobs.generation()._jobs.values()
    assert job.finished.wait(20)
    assert [read(error) for error in test.run().error] == ["Seen to its end."]


def test_an_export_that_went_with_its_server_is_told_until_it_is_put_away(tmp_path: Path) -> None:
    """What the server left that was killed: a note whose lock nobody holds, and a folder that was not finished."""
    target, at_work = tmp_path / "<b>mine", threading.Event()

    def page() -> None:
        from app.views.pruning import _broken_off

        _broken_off()

    def writes(over: threading.Event) -> None:
        with begun.noted(str(target)):
            at_work.set()
            assert over.wait(20)

    over = threading.Event()
    writing = threading.Thread(target=writes, args=(over,))
    writing.start()
    assert at_work.wait(20)
    assert not begun.broken_off(), "it is being written"
    notes = Store().folder / "exports"
    (note,) = notes.glob("*.json")
    copied = note.read_bytes()
    over.set()
    writing.join(20)
    assert not list(notes.iterdir())
    left = tmp_path / f"{PREFIX}x"
    left.mkdir()
    note.write_bytes(copied)
    for _ in range(2):
        test = AppTest.from_function(page).run()
        (told,) = test.get("html")
        assert f"The export to <code>{html.escape(str(target))}</code> broke off because its server ended" in read(told)
        assert not left.exists()
    button(test, "Put away").click().run()
    assert not test.get("html") and not list(notes.iterdir())

    note.write_bytes(copied)
    with begun.noted(str(target)):  # begun again
        assert len(list(notes.glob("*.json"))) == 1 and not begun.broken_off()
    assert not list(notes.iterdir())

    note.write_bytes(copied)
    target.mkdir()
    assert not begun.broken_off(), "it had come to its end"
    assert not list(notes.iterdir())


def test_an_export_that_was_cancelled_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    over = threading.Event()

    def exported(progress: Progress) -> None:
        assert over.wait(20)
        progress("Writing", 0.5)  # where a cancelled job ends
        raise AnalysisError("Seen to its end.")

    def begin(choice: state.Choice, folder: str, *rest: object) -> None:
        asked.append((folder, *rest))
        jobs.generation().submit(("export", choice, folder), "Exporting", exported)

    monkeypatch.setattr(cache, "export", begin)
    test = AppTest.from_function(export_form)
    test.run()
    test.text_input(key="export-folder").set_value("out")
    button(test, "Export").click().run()
    button(test, "Cancel").click().run()
    over.set()
    (job,) = jobs.generation()._jobs.values()
    assert job.finished.wait(20)
    test.run()
    assert [info.value for info in test.info] == ["Cancelled."]
    button(test, "Start again").click().run()
    (job,) = jobs.generation()._jobs.values()
    assert job.finished.wait(20)
    assert [read(error) for error in test.run().error] == ["Seen to its end."]
    assert asked == [("out", (), "saliency", 0.3)] * 2


def test_a_number_of_any_length_is_said_shortly(visit: Visit) -> None:
    test = visit("model", model="smollm2", edit="9" * 4000 + ":2")
    assert [read(error) for error in test.error] == [
        f"The address asks for edit = '{'9' * 37}...', but it must be token:ratio, more of them after commas, with a ratio "
        "from 1/1000000 to 1000000, as 300:20: shown is what stands without it."
    ]


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("positions", "7", "1024, 4096, 8192, 16384 or 65536"),
        ("seed", "-1", "a whole number from 0 to 4,294,967,295"),
        ("temperature", "inf", "a number from 0.01 to 10"),
        ("chat", "yes", "0 or 1"),
        ("rows", "demo", "model|text|positions, more of them after commas"),
    ],
)
def test_an_address_that_cannot_be_is_told_what_can(visit: Visit, key: str, value: str, must: str) -> None:
    (error,) = visit("model", model="smollm2", **{key: value}).error
    assert read(error).startswith(f"The address asks for {key} = '{value}', but it must be {must}")


def test_what_an_address_says_twice_is_told(visit: Visit) -> None:
    test = visit("model", edit="5:2,7:3,5:4", prompt="a\0b")
    assert [read(error) for error in test.error] == [
        "The address names token 5 with more than one ratio: the last one was taken.",
        "The prompt of the address holds NUL characters, which no text has: they were left away.",
    ]
    assert [(edit.token_id, edit.ratio) for edit in test.session_state["edit"]] == [(5, 4), (7, 3)]
    assert test.session_state["prompt"] == "ab"


def test_of_many_fields_that_cannot_be_the_first_are_named(visit: Visit) -> None:
    bad = dict.fromkeys(("positions", "seed", "edit", "chat", "samples", "temperature"), "zzz")
    said = [read(error) for error in visit("model", **bad).error]
    assert len(said) == 4 and said[-1] == "So it is with 3 more fields of the address."


def test_positions_that_cannot_be_are_as_if_none_were_named(visit: Visit) -> None:
    assert visit("model", positions="nan").session_state["positions"] == state.DEMO_POSITIONS


@pytest.mark.parametrize(("audience", "told"), [("own", True), ("public", False)])
def test_what_a_shared_server_does_not_offer_is_not_advised(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, audience: str, told: bool
) -> None:
    monkeypatch.setenv(AUDIENCE_VARIABLE, audience)
    said = text_of(visit("model"))
    assert "SmolLM2-135M is one that people use" in said
    assert ("For another model, type its name" in said) == told


@pytest.mark.parametrize("page", ["steering", "samples"])
def test_a_prompt_that_the_address_cannot_carry_is_said(visit: Visit, page: str) -> None:
    test = visit(page, model="smollm2", edit=EDIT)
    assert "too long for the address" not in text_of(test)
    test.session_state["prompt"] = "We walked along the road. " * 100
    test.run()
    assert "The prompt is too long for the address (2,600 characters, at most 2,000): after a reload" in text_of(test)
    assert "prompt" not in test.query_params


@pytest.mark.parametrize(("key", "value", "told"), [("prompt", "The river was", "prompt"), ("direction", "random", "edit"),
                                                    ("edit", (Edit(RIVER, 7.0),), "edit")])  # fmt: skip
def test_texts_of_an_earlier_request_say_so(visit: Visit, key: str, value: object, told: str) -> None:
    test = visit("samples", model="smollm2", edit=EDIT)
    assert "were written with an earlier" not in text_of(test)
    test.session_state[key] = value
    test.run()
    assert f"These texts were written with an earlier {told}: press Write for new ones." in text_of(test)


@pytest.mark.parametrize(
    ("component", "name", "values"),
    [
        ("knobs", "moved", ({}, [1], {"id": "x"}, {"id": RIVER, "ratio": float("inf")}, {"id": RIVER, "ratio": "2"},
                            {"id": float("inf"), "ratio": 2}, {"id": RIVER, "ratio": 0})),
        ("knobs", "removed", ("x", {}, float("nan"))),
        ("keys", "turned", ("x", {}, 7)),
    ],
)  # fmt: skip
def test_what_no_slider_and_no_key_sends_is_ignored(
    monkeypatch: pytest.MonkeyPatch, component: str, name: str, values: tuple[object, ...]
) -> None:
    called: list[tuple[object, ...]] = []
    callbacks: dict[str, Callable[[], None]] = {}

    def told(*arguments: object) -> None:
        called.append(arguments)

    sent: dict[str, object] = {}
    monkeypatch.setattr(state, "st", SimpleNamespace(session_state={component: sent}))
    monkeypatch.setattr(
        {"knobs": knobs, "keys": keys}[component], "_component", lambda **given: callbacks.update(given)
    )
    if component == "knobs":
        knobs.knobs({}, moved=told, removed=told)
    else:
        keys.keys(turned=told, left=told)
    for value in values:
        sent[name] = value
        callbacks[f"on_{name}_change"]()
    assert called == []
    sent[name] = {"moved": {"id": RIVER, "ratio": 2}, "removed": RIVER, "turned": -1}[name]
    callbacks[f"on_{name}_change"]()
    assert called == [{"moved": (RIVER, 2.0), "removed": (RIVER,), "turned": (-1,)}[name]]


def test_an_impossible_ratio_gets_one_sentence(visit: Visit) -> None:
    test = visit("steering", model="smollm2", edit=",".join(f"{i}:100" for i in range(9)))
    assert not test.exception
    assert len(test.error) == 1
    assert charts(test) == []


@pytest.mark.parametrize("direction", state.DIRECTION_CHOICES)
@pytest.mark.parametrize("calibrate", ["0", "1"])
def test_every_direction_answers(visit: Visit, direction: str, calibrate: str) -> None:
    test = visit("steering", model="smollm2", edit=f"{RIVER}:2", direction=direction, calibrate=calibrate)
    assert not test.exception
    assert len(charts(test)) + len(test.error) == 1


def test_samples(visit: Visit) -> None:
    test = visit("samples", model="smollm2", edit=EDIT)
    assert "The edit:" in text_of(test)
    button(test, "Write").click().run()
    fine(settled(test))
    said = text_of(test)
    assert "<b>2</b> of 8 tokens, 0 before; expected 1.7" in said
    assert "hs-steered" in said and "<b>bold" not in said and "<script>" not in said
    assert len(charts(test)) == 1


def test_texts_appear_while_they_are_written(visit: Visit) -> None:
    class Slow(ArrayAnalysis):
        go_on = threading.Event()

        def generate(self, *arguments, progress: Progress = no_progress, **options):
            def wait(phrase: str, share: float | None) -> None:
                progress(phrase, share)
                if share == 0.75:  # told after the first tokens
                    assert self.go_on.wait(20)

            return super().generate(*arguments, progress=wait, **options)

    analysis = Slow()
    test = visit("model", analysis, model="smollm2", edit=EDIT)
    test.switch_page("views/samples.py").run()
    for _ in range(100):
        if PAIR in text_of(test):
            break
        time.sleep(0.05)
        test.run()
    said = text_of(fine(test))
    assert button(test, "Cancel") and "expected" not in said
    assert said.count(PAIR) == 2
    assert '<span class="hs-changed"><span class="hs-chip hs-steered" title="id' in said and "<b>bold" not in said
    analysis.go_on.set()
    assert "expected 1.7" in text_of(fine(settled(test)))


def test_texts_that_were_cancelled_are_started_again(visit: Visit) -> None:
    class Slow(ArrayAnalysis):
        begun, go_on = threading.Event(), threading.Event()

        def generate(self, *arguments, progress: Progress = no_progress, **options):
            self.begun.set()
            assert self.go_on.wait(20)
            progress("Sampling texts", 0.5)  # where a cancelled job ends
            return super().generate(*arguments, progress=progress, **options)

    analysis = Slow()
    test = visit("model", analysis, model="smollm2", edit=EDIT)
    test.switch_page("views/samples.py").run()
    while not analysis.begun.wait(0.05):
        test.run()
    test.run()
    button(test, "Cancel").click().run()
    analysis.go_on.set()
    (job,) = jobs.generation()._jobs.values()
    assert job.finished.wait(20)
    test.run()
    assert [info.value for info in test.info] == ["Cancelled."]  # no text is kept before all are written
    button(test, "Start again").click().run()
    assert "expected 1.7" in text_of(fine(settled(test)))


def test_a_failed_analysis_gets_its_sentence_and_can_be_tried_again(visit: Visit) -> None:
    class Broken(ArrayAnalysis):
        broken = True

        def encoding(self, progress: Progress = no_progress):
            if self.broken:
                raise AnalysisError("The model needs 900 GB and 8 GB are free.")
            return super().encoding(progress)

    analysis = Broken(stored=False)
    test = visit("encoding", analysis, model="smollm2")
    assert "900 GB" in test.error[0].value
    assert not test.exception
    analysis.broken = False
    button(test, "Try again").click().run()
    fine(settled(test))
    assert len(charts(test)) == 1


def test_a_mistake_of_ours_is_no_traceback(visit: Visit, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ArrayAnalysis):
        def encoding(self, progress: Progress = no_progress):
            raise KeyError("oops")

    test = visit("encoding", Broken(stored=False), model="smollm2")
    assert "because of a mistake in Headscope" in test.error[0].value
    assert not test.exception
    assert "oops" in caplog.text


def test_an_upload_becomes_the_text(visit: Visit) -> None:
    test = visit("model", model="smollm2")
    test.file_uploader(key="upload").set_value(("../my notes.txt", b"one two three", "text/plain")).run()
    fine(settled(test))
    assert test.session_state["corpus"].endswith("my-notes.txt")
    assert param(test, "corpus").endswith("my-notes.txt")


def test_a_pasted_text_becomes_the_text(visit: Visit) -> None:
    test = visit("model", model="smollm2")
    test.text_area(key="pasted").input("one two three").run()
    test.button(key="use-pasted").click().run()
    fine(settled(test))
    assert Path(test.session_state["corpus"]).read_text("utf-8") == "one two three"
    assert param(test, "corpus").endswith("pasted.txt")


def test_a_pasted_text_has_its_limits(visit: Visit) -> None:
    test = visit("model", model="smollm2")
    test.text_area(key="pasted").input(" \n ").run()
    test.button(key="use-pasted").click().run()
    assert "no text in the field" in test.error[0].value and "corpus" not in test.query_params
    test.text_area(key="pasted").input("a" * (uploads.MOST_CHARACTERS + 1)).run()
    test.button(key="use-pasted").click().run()
    assert "1,000,001 characters" in test.error[0].value.replace("\\", "") and "corpus" not in test.query_params


def test_another_model_forgets_the_edits(visit: Visit) -> None:
    test = visit("steering", model="smollm2", edit=EDIT)
    test.selectbox(key="model").set_value("demo").run()
    assert "edit" not in test.query_params


def test_large_type_makes_figures_readable_from_the_last_row(visit: Visit) -> None:
    test = visit("encoding", model="smollm2")
    test.toggle(key="large").set_value(True).run()
    assert charts(fine(test))[0]["layout"]["template"]["layout"]["font"]["size"] >= 20


@pytest.mark.parametrize("key", ["model", "positions", "corpus"])
def test_a_choice_that_a_cut_run_lost_comes_back(visit: Visit, key: str) -> None:
    test = visit("encoding", positions="1024", seed="7")
    chosen = test.session_state[key]
    test.session_state[key] = None
    test.run()
    assert not test.exception and test.session_state[key] == chosen


class Cut(dict):
    """A session state in which the run ends at the n-th word with it, as Streamlit ends a run that a newer one replaces."""

    left = 0

    def __setitem__(self, key: str, value: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise InterruptedError
        super().__setitem__(key, value)


class Query(dict):
    """What an address says."""

    def get_all(self, key: str) -> list[str]:
        return [self[key]]


def test_a_first_run_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run begins the session again, so that no choice is left unmade."""
    monkeypatch.setattr(state, "st", SimpleNamespace(session_state=Cut(), query_params=Query(positions="4096")))
    state.start()
    whole = {key: value for key, value in state.st.session_state.items() if key != "session"}
    assert whole["model"] == "demo" and whole["positions"] == 4096
    cuts = 0
    for n in range(1, 100):
        state.st.session_state = Cut()
        state.st.session_state.left = n
        try:
            state.start()
        except InterruptedError:
            cuts += 1
        state.st.session_state.left = 0  # no more cuts
        state.start()
        assert state.st.session_state.keys() - whole.keys() == {"session"}
        assert {key: state.st.session_state[key] for key in whole} == whole
    assert 30 < cuts < 99


def test_an_address_alone_trains_no_model(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    asked: list[str] = []
    monkeypatch.setattr("app.cache._measure", lambda series, run, progress: asked.append(series))
    test = fine(visit("dynamics", series="train:small:3:python-docs"))
    assert "has not been trained" in text_of(test) and asked == []
    monkeypatch.setattr("app.cache.dynamics", lambda series: asked.append(series) or bundled())
    fine(test.button("train-it").click().run())
    assert asked == ["train:small:3:python-docs"]
    refused = visit("dynamics", series="train:small:\u0663:python-docs")
    assert len(refused.error) == 1 and "has no such name" in refused.error[0].value


def test_train_goes_on_with_a_run_that_was_cancelled(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    series = "train:small:0:python-docs"
    begun, go_on = threading.Event(), threading.Event()
    times: list[str] = []

    def measured(name: str, run: runs.Run | None, progress: Progress) -> object:
        times.append(name)
        begun.set()
        assert go_on.wait(20)
        progress("Training", 0.5)  # where a cancelled job ends
        return bundled()

    monkeypatch.setattr("app.cache._measure", measured)
    test = fine(visit("dynamics", corpus="python-docs"))
    test.button("train-start").click().run()
    while not begun.wait(0.05):
        test.run()
    test.run()
    button(test, "Cancel").click().run()
    go_on.set()
    job = jobs.analyses().find(("dynamics", series))
    assert job is not None and job.finished.wait(20)
    assert "goes on from there" in test.run().info[0].value
    test.button("train-start").click().run()
    assert button(fine(settled(test)), "Keep this run")
    assert times == [series] * 2


def test_a_run_on_a_disk_that_takes_nothing(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it can be neither kept nor discarded is told beside the buttons, and nothing is taken for done."""
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr("app.cache.dynamics", lambda series: bundled())
    series = "train:small:3:python-docs"
    folder = runs.Run("small", 3, "python-docs").folder()
    folder.mkdir(parents=True)
    test = fine(visit("dynamics", series=series))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as read_only:
        read_only.setattr(runs, "write_atomically", refuse)
        read_only.setattr(runs.shutil, "rmtree", refuse)
        test.button("run-keep").click().run()
        assert [read(error) for error in test.error] == [
            "The run cannot be kept in Headscope's cache (Read-only file system): start with --cache FOLDER."
        ]
        test.button("run-discard").click().run()
        assert [read(error) for error in test.error] == [
            "The run cannot be discarded (Read-only file system): see that Headscope's cache can be written to and try again."
        ]
    assert runs.kept() == [] and param(test, "series") == series
    assert "This run is kept" in text_of(fine(test.button("run-keep").click().run())) and runs.kept() == [series]
    fine(test.button("run-discard").click().run())
    assert runs.kept() == [] and not folder.exists()


@pytest.mark.parametrize("page", ["steering", "samples"])
@pytest.mark.parametrize("template", [True, False])
def test_an_address_asks_for_a_chat_format(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, page: str, template: bool
) -> None:
    monkeypatch.setattr(
        cache, "head_facts", lambda choice: SimpleNamespace(**vars(facts()) | {"chat_template": template})
    )
    test = fine(visit(page, chat="1"))
    assert ("This model has no chat format: the prompt is taken as it is" in text_of(test)) != template
    assert [toggle.value for toggle in test.toggle if toggle.label == "Chat format"] == [True] * template


def test_an_empty_prompt_is_one_and_stays_one(visit: Visit) -> None:
    test = visit("steering", prompt="")
    assert test.session_state["prompt"] == "" and param(fine(test.run()), "prompt") == ""


@pytest.mark.parametrize(("typed", "meant"), [("  ", "smollm2"), (" smollm2\N{NO-BREAK SPACE}", "smollm2")])
def test_a_name_has_no_blanks_around_it(monkeypatch: pytest.MonkeyPatch, typed: str, meant: str) -> None:
    monkeypatch.setattr(state.st, "session_state", {"model": typed, "last-model": "smollm2", "positions": 4096})
    state.model_chosen()
    assert state.chosen("model") == meant and state.chosen("positions") == 4096
