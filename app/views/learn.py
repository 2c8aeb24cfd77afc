"""Learn: the lesson, one step at a time; and the same for a projector."""

from __future__ import annotations

import streamlit as st

from app import edits, state, widgets
from app.lesson.keys import keys
from app.lesson.questions import Question, Verdict, check
from app.lesson.steps import STEPS, Places, Step
from app.state import Choice
from core.encoding import Encoding

PRESENTER_STYLE = """
[data-testid=stSidebar], [data-testid=stHeader], [data-testid=stExpandSidebarButton] {display: none !important;}
.stMainBlockContainer {max-width: 100rem; padding-top: .6rem; padding-bottom: .6rem;}
.stMainBlockContainer h1 {padding: .2rem 0;}
.st-key-lesson-bar {padding-top: 0;}
.st-key-lesson-figure {height: max(16rem, calc(100vh - 15.5rem)) !important;}
.knob-told {display: none;}
"""


def page() -> None:
    number = state.lesson_step(len(STEPS))
    step = STEPS[number - 1]
    if state.presenting():
        st.html(f"<style>{PRESENTER_STYLE}</style>")
        keys(turned=state.turn, left=state.stop_presenting)
    _bar(number)
    st.title(step.question, anchor=False)
    choice = state.choice()
    encoding = widgets.need_encoding(choice)
    if step.prepared:
        widgets.need_prepared(choice)
    _step(number, step, choice, encoding)


def _bar(number: int) -> None:
    """Where one is, and the way on: always at the same place."""
    right = state.answered()
    done = "".join(
        f'<span class="hs-dot{" hs-dot-now" if n == number else ""}{" hs-dot-right" if n in right else ""}"></span>'
        for n in range(1, len(STEPS) + 1)
    )
    told = f"{number} of {len(STEPS)}"
    with st.container(horizontal=True, vertical_alignment="center", key="lesson-bar"):
        st.button("Back", key="lesson-back", on_click=state.turn, args=(-1,), disabled=number == 1)
        st.html(
            f'<p class="hs-progress"><b>{told}</b><span class="hs-dots" aria-hidden="true">{done}</span>'
            f'<span class="hs-quiet">{len(right)} answered</span></p>'
        )
        st.button(
            "Next",
            key="lesson-next-step",
            type="primary",
            on_click=state.turn,
            args=(1,),
            disabled=number == len(STEPS),
        )
        if state.presenting():
            st.button("Leave", key="lesson-leave", on_click=state.stop_presenting, help="Or press Escape.")
        else:
            st.button(
                "Present",
                key="lesson-present",
                on_click=state.start_presenting,
                help="Large type for a projector; arrow keys or Page Up and Page Down turn the steps, Escape leaves.",
            )


@st.fragment
def _step(number: int, step: Step, choice: Choice, encoding: Encoding) -> None:
    """Everything that a control of the step changes."""
    state.drop_unknown(edits.alphas(encoding, state.edits()))
    edits.refusal()
    sentence = st.container()
    if state.presenting():
        left, side = st.columns([3, 2], gap="large")
        with left:
            figure = st.container(height=600, border=False, key="lesson-figure")
        with side:
            about, control, question = st.container(), st.container(), st.container()
    else:
        about, figure, control, question = (st.container() for _ in range(4))
    with about:
        widgets.note(step.about)
    asked = step.draw(Places(sentence, figure, control, question), choice, encoding)
    if asked is not None:
        with question:
            _question(number, asked)
    state.publish()


def _question(number: int, asked: Question) -> None:
    """The question, the answer and what is said to it."""
    with st.container(border=True, key="lesson-question"):
        st.html(f'<p class="hs-question"><b>Your turn.</b> {asked.text.replace(" %", "&nbsp;%")}</p>')
        with (
            st.form(f"lesson-form-{number}", border=False),
            st.container(horizontal=True, vertical_alignment="bottom"),
        ):
            answer = st.number_input(
                f"Answer ({asked.unit})",
                value=None,
                key=f"lesson-answer-{number}",
                persist_state="session",
                format="%g",
            )
            sent = st.form_submit_button("Check")
        if sent:
            verdict = Verdict(False, "Write a number first.") if answer is None else check(asked, float(answer))
            state.keep_verdict(number, asked.text, verdict)
            if verdict.right:
                st.rerun()  # the bar above tells how many are answered
        told = state.verdict(number, asked.text)
        if told is not None:
            kind = "hs-right" if told.right else "hs-wrong"
            st.html(f'<p class="hs-verdict {kind}" role="status">{told.told}</p>')


if __name__ == "__main__":
    page()
