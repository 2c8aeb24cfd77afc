"""Compare: does it hold elsewhere?"""

from __future__ import annotations

import html

import streamlit as st

from app import cache, handout, jobs, state, uploads, widgets
from app.jobs import Job
from app.rules import rules
from app.state import Choice
from core.compare import METHODS, Row, as_json, distinct, finding, names
from core.errors import HeadscopeError
from core.figures import compare as figures
from core.figures import words
from core.words import short

QUESTION = "Does it hold elsewhere?"
VIEWS = ("Fit", "Sparsity", "Weights", "Steering", "Pruning")
TITLES = {
    "Fit": "How much a line explains",
    "Sparsity": "How few dimensions it takes",
    "Weights": "Do the fitted directions agree?",
    "Steering": "How far off a ratio is, on text it has not seen",
    "Pruning": "What deleting dimensions costs",
}


def page() -> None:
    st.title(QUESTION, anchor=False)
    choice = state.choice()
    chosen = state.compared(_first(choice))
    place = st.container()
    _rows(choice, chosen)
    asked, working, refused = _known(chosen)
    everything = distinct([*asked, *_of_data()])
    rows = [row for row in everything if not row.error]
    with place:
        widgets.say(html.escape(finding(rows)))
    with st.container(key="compare-status"):
        if working is not None:
            _working(working, working.partial)
        else:
            kept = "; results are kept" if widgets.keeps() else ""
            widgets.note(f"{words.plural(sum(row.complete for row in rows), 'row')} measured here{kept}.")
    for number, (each, why, job) in enumerate(refused):
        _refused(each, why, job, number)
    if not rows:
        return
    view = widgets.one_of("Figure", VIEWS, "compared", hidden=True)
    with place:
        handout.draw(
            "compare",
            choice,
            lambda: as_json(everything),
            report=False,
            told="Rows are measured one after the other; what is known is shown.",
            figure=view,
            more=chosen,
            data=str(state.chosen("data") or ""),
        )
    _figure(rows, view)
    widgets.note("One line a row; drag it sideways for all columns.")
    widgets.rows(figures.table(rows), 38 + 35 * len(rows), "compare-table")
    widgets.download(figures.table(rows), "compare")
    _reading()


def _first(choice: Choice) -> tuple[state.Compared, ...]:
    """What is compared before anybody chose: the model on its text and on the other bundled one."""
    texts = [choice.corpus, *(name for name in rules().corpora if name != choice.corpus)]
    most = 1 if rules().fixed is not None else 2
    return tuple((choice.model, text, choice.positions) for text in texts[:most])


def _known(chosen: tuple[Choice, ...]) -> tuple[list[Row], Job | None, list[tuple[Choice, str, Job | None]]]:
    """The rows as far as they are known or with the reason why not, the job that is at work on one, and what to say of
    rows that are not measured.

    One row is measured after the other, so that a visitor of a shared server never has more than one job in line.
    """
    rows: list[Row] = []
    working: Job | None = None
    refused: list[tuple[Choice, str, Job | None]] = []
    for each in chosen:
        try:
            row, job = cache.row(each)
            complete = row is not None and row.complete
            if not complete and working is None and (job is None or job.active):
                job = working = cache.measure_row(each)
        except HeadscopeError as error:
            refused.append((each, str(error), None))
            rows.append(cache.failed_row(each, str(error)))
            continue
        if job is not None and job.state in ("failed", "cancelled"):
            refused.append(
                (each, job.error or f"Cancelled{'; what was finished is kept' if widgets.keeps() else ''}.", job)
            )
            if row is None and job.error:
                row = cache.failed_row(each, job.error)
        if row is not None:
            rows.append(row)
    return rows, working, refused


def _of_data() -> tuple[Row, ...]:
    """The rows of a sweep, where its data set is named; of those that failed or are damaged the reason is said."""
    folder = str(state.chosen("data") or "").strip()
    if not folder:
        return ()
    try:
        found = cache.data_rows(folder)
    except HeadscopeError as error:
        widgets.problem(error)
        return ()
    for row in found:
        if row.error:
            widgets.warning(f"<b>{html.escape(row.title)}</b>: {html.escape(rules().said(row.error))}")
    return found


def _rows(choice: Choice, chosen: tuple[Choice, ...]) -> None:
    """The list of rows: take one away, add one."""
    widgets.tell_left_out("rows")
    with st.container(horizontal=True, vertical_alignment="center"):
        for number, each in enumerate(chosen):
            rest = chosen[:number] + chosen[number + 1 :]
            st.button(
                f"{widgets.plain(_name(each))} ✕",
                key=f"compare-remove-{number}",
                help="Take this row away",
                on_click=state.compare,
                args=(rest,),
            )
        with st.popover("Add a row", key="compare-add-row"):
            _add(choice, chosen)


def _name(choice: Choice) -> str:
    model, corpus = (short(uploads.title(name)) for name in (choice.model, choice.corpus))
    return f"{model} · {corpus} · {choice.positions // 1024}k"


def _add(choice: Choice, chosen: tuple[Choice, ...]) -> None:
    if len(chosen) >= state.MOST_ROWS:
        widgets.note(f"At most {state.MOST_ROWS} rows: take one away first.")
        return
    own = not rules().shared
    widgets.names(
        "Model or revision",
        [choice.model, *rules().models],
        typed=own,
        key="compare-model",
        help="Type also another revision of the same model: `org/name@revision`." if own else None,
    )
    widgets.names(
        "Text of the row",
        [*rules().corpora, choice.corpus],
        typed=own,
        title=uploads.title,
        key="compare-corpus",
    )
    st.segmented_control(
        "Positions of the row",
        state.positions(),
        format_func=lambda n: f"{n // 1024}k",
        default=choice.positions,
        required=True,
        key="compare-positions",
    )
    st.button("Add", type="primary", key="compare-add", on_click=_take, args=(choice, chosen))
    if (wanted := _wanted(choice)) in chosen:
        widgets.note(
            f"{html.escape(_name(wanted))} stands in the list: choose another model, text or number of positions to add."
        )
    if own:
        st.text_input(
            "Rows of a sweep",
            key="data",
            persist_state="session",
            max_chars=state.MOST_PATH,
            placeholder="for example: results/",
            help="The folder that `headscope sweep` wrote: its runs are shown beside these rows.",
        )


def _wanted(choice: Choice) -> Choice:
    """The row that the fields name; what is left empty is as on the other pages."""
    model = str(state.chosen("compare-model") or choice.model).strip()
    corpus = str(state.chosen("compare-corpus") or choice.corpus).strip()
    positions = int(str(state.chosen("compare-positions") or choice.positions))
    return Choice(model, corpus, positions, choice.seed)


def _take(choice: Choice, chosen: tuple[Choice, ...]) -> None:
    state.compare((*chosen, _wanted(choice)))


@st.fragment(run_every=0.5)
def _working(job: Job, drawn: Row | None) -> None:
    """How far the row is that is being measured; the page is drawn again whenever there is more of it."""
    job.seen[state.session()] = jobs.now()
    if not job.active or job.partial is not drawn:
        st.rerun()
    line, left = widgets.standing(job, jobs.analyses()), job.seconds_left()
    more = f" · {words.duration(left)} left" if left else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(min(1.0, max(0.0, job.share or 0.0)), text=widgets.plain(f"{job.title}: {line}{more}"))
        widgets.cancelled(job, jobs.analyses())


def _refused(choice: Choice, why: str, job: Job | None, number: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.warning(f"<b>{html.escape(_name(choice))}</b>: {html.escape(rules().said(why))}")
        if job is not None and st.button("Try again", key=f"compare-again-{number}"):
            jobs.analyses().forget(job.key)
            st.rerun()


def _figure(rows: list[Row], view: str) -> None:
    look = state.look()
    if view == "Pruning":
        chart = figures.pruning(rows, widgets.one_of("Method", METHODS, "compared-method"), look)
    else:
        make = {
            "Fit": figures.fit,
            "Sparsity": figures.sparsity,
            "Weights": figures.weights,
            "Steering": figures.accuracy,
        }[view]
        chart = make(rows, look)
    if chart.table.empty:
        if view in ("Steering", "Pruning"):
            _missing(rows, view)
        else:
            widgets.note(html.escape(chart.summary))
        return
    widgets.chart(chart, f"compare-{view.lower()}", TITLES[view])
    widgets.note(html.escape(chart.summary))
    _missing(rows, view)


def _missing(rows: list[Row], view: str) -> None:
    """Which rows a figure does not show, and whether they will come."""
    missing = [
        (name, row.of_sweep)
        for name, row in zip(names(rows), rows, strict=True)
        if (view == "Steering" and row.steering is None) or (view == "Pruning" and not row.pruning)
    ]
    for of_sweep, told in (
        (False, "Not measured yet"),
        (True, "A sweep does not measure this, so it is not known for"),
    ):
        if found := [name for name, sweep in missing if sweep is of_sweep]:
            widgets.note(f"{told}: {html.escape(', '.join(found))}.")


def _reading() -> None:
    with st.expander("How to read this"):
        st.markdown(
            "Every row is a model on a text, measured as on the other pages. **Fit**: R² on the tokens that were fitted, "
            "on tokens and on text that were not. **Sparsity**: R² with only the most salient dimensions, as a share of "
            "all, so that widths can be compared. **Weights**: the cosine between two fitted directions; only for one "
            "model on several texts, or revisions of one model, do dimensions mean the same. **Steering**: 24 tokens of "
            "rank 200 to 5,000, one at a time, minimum-variance and calibrated; the median factor between realised and "
            "asked on text that was not used. **Pruning**: in how many contexts the top prediction stays. The claim "
            "would be wrong elsewhere if R² on held-out text were near zero there."
        )


if __name__ == "__main__":
    page()
