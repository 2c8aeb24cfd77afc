"""The page Learn: every step stands, answers are checked against this run, the step is in the address."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app import state
from app.lesson import questions
from app.lesson.steps import STEPS
from tests.app.arrays import RIVER, ArrayAnalysis, planted
from tests.app.conftest import text_of

Visit = Callable[..., AppTest]
EDIT = f"{RIVER}:4"


def fine(test: AppTest) -> AppTest:
    assert not test.exception
    assert not test.error, [e.value for e in test.error]
    return test


def asked(test: AppTest) -> AppTest:
    """Run again until the step asks its question: where a prompt is worked out the model is loaded first."""
    for _ in range(100):
        if "Your turn" in text_of(test):
            break
        time.sleep(0.05)
        test.run()
    return fine(test)


def answer(test: AppTest, step: int, value: float) -> AppTest:
    test.number_input(key=f"lesson-answer-{step}").set_value(value)
    next(b for b in test.button if b.label == "Check").click().run()
    return fine(test)


def spec(test: AppTest) -> dict:
    return json.loads(test.get("plotly_chart")[0].proto.spec)


@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
def test_every_step_has_a_sentence_a_figure_and_a_question(visit: Visit, step: int) -> None:
    test = asked(visit("learn", model="smollm2", edit=EDIT, lesson=str(step)))
    said = text_of(test)
    assert test.title[0].value == STEPS[step - 1].question
    assert f"<b>{step} of 8</b>" in said and "Your turn" in said
    assert re.search(r'hs-sentence"><b>[\d/]', said), "the number comes first"
    live = [part for part in test.get("bidi_component") if part.proto.component_name.endswith("knobs")]
    assert len(test.get("plotly_chart")) + len(live) == 1
    assert "<script>alert" not in said


def test_right_and_wrong_answers(visit: Visit) -> None:
    test = visit("learn", model="smollm2", edit=EDIT, lesson="2")
    count = questions.tokens_for(planted()[2], 0.5)
    answer(test, 2, 3 * count)
    assert "too large" in text_of(test) and "0 answered" in text_of(test)
    answer(test, 2, count)
    assert f"Right: <b>{count} tokens</b>" in text_of(test) and "1 answered" in text_of(test)
    test.button(key="lesson-next-step").click().run()
    assert "Right:" not in text_of(fine(test)) and "1 answered" in text_of(test)
    test.button(key="lesson-back").click().run()
    assert "Right:" in text_of(fine(test))
    assert test.query_params["answered"] in ("2", ["2"])
    again = visit("learn", model="smollm2", edit=EDIT, lesson="2", answered="1,2")
    assert "2 answered" in text_of(fine(again)), "a reload keeps what was answered"
    assert "answered = '9', but it must be " in visit("model", model="smollm2", answered="9").error[0].value.replace(
        "\\", ""
    )


def test_an_empty_answer_is_no_answer(visit: Visit) -> None:
    test = visit("learn", model="smollm2", lesson="4")
    next(b for b in test.button if b.label == "Check").click().run()
    assert "Write a number first" in text_of(fine(test))


def test_the_step_is_in_the_address(visit: Visit) -> None:
    test = visit("learn", model="smollm2")
    assert "lesson" not in test.query_params and test.button(key="lesson-back").disabled
    for _ in range(7):
        test.button(key="lesson-next-step").click().run()
    assert test.query_params["lesson"] in ("8", ["8"])
    assert test.button(key="lesson-next-step").disabled
    assert "8 of 8" in text_of(fine(visit("learn", model="smollm2", lesson="8")))
    assert len(STEPS) == state.LESSON_STEPS


def test_the_control_changes_the_figure(visit: Visit) -> None:
    test = visit("learn", model="smollm2", lesson="2")
    before = spec(test)
    test.select_slider(key="lesson-first").set_value(50).run()
    share = np.sort(planted()[2].alpha)[::-1][:50].sum() / planted()[2].alpha.sum()
    assert spec(fine(test)) != before
    assert f"<b>{float(f'{100 * share:.3g}'):g}&nbsp;%</b> of all probability" in text_of(test)


def test_another_token_is_another_question(visit: Visit) -> None:
    test = visit("learn", model="smollm2", edit=EDIT, lesson="3")
    measured = questions.off_the_line(planted()[2], RIVER).measured
    answer(test, 3, measured)
    assert "Right:" in text_of(test)
    test.text_input(key="lesson-token").input("2020").run()
    assert "Right:" not in text_of(fine(test)) and "2020" in text_of(test)
    test.text_input(key="lesson-token").input("<nothing>").run()
    assert "No token contains" in text_of(fine(test)) and "<nothing>" not in text_of(test)


def test_the_presenter_view_is_large_and_bare(visit: Visit) -> None:
    test = visit("learn", model="smollm2", lesson="2", present="1")
    assert spec(fine(test))["layout"]["template"]["layout"]["font"]["size"] >= 20
    assert len(test.get("bidi_component")) == 1  # the keys
    assert "stSidebar" in text_of(test)
    test.button(key="lesson-leave").click().run()
    assert "present" not in fine(test).query_params


def test_the_lesson_waits_for_the_analysis(visit: Visit) -> None:
    test = asked(visit("learn", ArrayAnalysis(stored=False), model="smollm2"))
    assert len(test.get("plotly_chart")) == 1
