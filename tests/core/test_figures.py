"""Figures: what is drawn is what was measured, and no token is read as markup."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from core.figures import Chart, Look, encoding, head, look, steering, texts, words
from core.results import FewShotPoint, TokenCount
from tests.app.arrays import EDITS, RIVER, TOKENS, ArrayAnalysis, planted


@pytest.fixture(scope="module")
def analysis() -> ArrayAnalysis:
    return ArrayAnalysis()


def charts(analysis: ArrayAnalysis, shown: Look) -> dict[str, Chart]:
    known = planted()[2]
    edit = analysis.steer(EDITS)
    return {
        "fit": encoding.fit_scatter(known, shown, (RIVER, 10**9)),
        "weights": encoding.weights(known, shown),
        "saliency": encoding.weights(known, shown, "saliency", False),
        "sparsity": encoding.sparsity(known, shown),
        "predictors": encoding.predictors(known, shown),
        "map": encoding.output_space(known, shown),
        "agreement": head.agreement(2e-6, 1e-4, 0.03, shown),
        "share": head.parameter_share(28_000_000, 134_000_000, True, shown),
        "next": texts.next_token(analysis.next_token("a", edit), shown),
        "result": steering.asked_and_realised(edit, shown),
        "range": steering.sweep(analysis.sweep(EDITS, (0.1, 0.5, 2, 4)), edit, shown),
        "costs": steering.side_effects((edit, *analysis.baselines(EDITS)), shown),
        "few": steering.few_shot((FewShotPoint(16, (2.0,), 0.7), FewShotPoint(256, (3.9,), 0.02)), 4.0, shown),
        "counts": texts.sampled_counts([TokenCount(1, "a", 0, 2, 0.1, 1.7, 0.0, float("nan"))], 8, shown),
    }


@pytest.mark.parametrize("shown", [Look(), Look(dark=True, type_size=20)])
def test_every_figure_can_be_sent_has_words_and_numbers(analysis: ArrayAnalysis, shown: Look) -> None:
    for name, chart in charts(analysis, shown).items():
        assert json.loads(chart.figure.to_json())["data"], name
        assert len(chart.summary) > 20 and "nan" not in chart.summary, name
        assert len(chart.table) > 0, name
        assert chart.figure.layout.template.layout.font.size == shown.type_size, name


def test_tokens_never_become_markup(analysis: ArrayAnalysis) -> None:
    for name, chart in charts(analysis, Look()).items():
        sent = chart.figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        assert "<script" not in sent and "<b>bold" not in sent, name


def test_equal_and_numeric_tokens_keep_their_places(analysis: ArrayAnalysis) -> None:
    axis = look.token_axis(["2020", " river", " river", "<b>"])
    assert axis["tickvals"] == [0, 1, 2, 3]
    assert axis["ticktext"] == ["2020", "␣river", "␣river", "&lt;b&gt;"]


def test_the_scatter_shows_the_fit() -> None:
    known = planted()[2]
    points = encoding.fit_scatter(known, Look()).figure.data[0]
    np.testing.assert_allclose(points.x, known.predicted, rtol=1e-6)
    np.testing.assert_allclose(points.y, known.neg_log_alpha, rtol=1e-6)


def test_chosen_tokens_are_marked_on_the_scatter() -> None:
    marked = encoding.fit_scatter(planted()[2], Look(), (RIVER,)).figure.data[-1]
    assert list(marked.text) == ["␣river"]
    assert marked.marker.color == Look().after


def test_found_tokens_are_marked_unless_they_are_steered() -> None:
    figure = encoding.fit_scatter(planted()[2], Look(), (RIVER,), (RIVER, 4)).figure
    assert [list(trace.text) for trace in figure.data[-2:]] == [["␣river"], ["2020"]]
    assert figure.data[-1].marker.color not in (Look().after, Look().ours)
    assert len(figure.layout.annotations) == 2


def test_labels_of_several_found_tokens_do_not_overlap() -> None:
    figure = encoding.fit_scatter(planted()[2], Look(), (), range(20, 28)).figure
    heights = sorted(note.ay for note in figure.layout.annotations)
    low, high = figure.layout.yaxis.range
    assert len(heights) == 8 and np.diff(heights).min() > 0.07 * (high - low)
    assert low < heights[0] and heights[-1] < high


def test_the_hover_of_the_scatter_says_one_in_how_many() -> None:
    known = planted()[2]
    points = encoding.fit_scatter(known, Look()).figure.data[0]
    np.testing.assert_allclose(points.customdata[:, 0], known.token_ids)
    np.testing.assert_allclose(points.customdata[:, 1], 1 / known.alpha, rtol=1e-5)
    np.testing.assert_allclose(points.customdata[:, 2], np.exp(known.predicted), rtol=1e-5)


def test_held_out_is_never_a_solid_line(analysis: ArrayAnalysis) -> None:
    shown = Look()
    for name, chart in charts(analysis, shown).items():
        for trace in chart.figure.data:
            if trace.type != "scatter" or trace.marker.color != shown.held_out:
                continue
            assert "open" in trace.marker.symbol, name
            assert trace.mode == "markers" or "lines" not in trace.mode or trace.line.dash == "dash", name


def test_intervals_of_the_weights_are_the_standard_errors() -> None:
    known = planted()[2]
    chart = encoding.weights(known, Look(), "weight", False)
    drawn = {
        int(d): float(e) for t in chart.figure.data for d, e in zip(t.customdata[:, 0], t.error_y.array, strict=True)
    }
    for place, error in enumerate(known.standard_errors):
        assert drawn[place] == pytest.approx(1.96 * error)


def test_realised_points_are_those_of_the_steering(analysis: ArrayAnalysis) -> None:
    edit = analysis.steer(EDITS)
    above, below = (replace(t, realised_held_out=t.target * by) for t, by in zip(edit.tokens, (1.1, 0.9), strict=True))
    edit = replace(edit, tokens=(above, below))
    chart = steering.asked_and_realised(edit, Look())
    assert list(chart.table["token"]) == [TOKENS[RIVER], TOKENS[0]]
    held_out = chart.figure.data[2]
    assert list(held_out.x) == [t.realised_held_out for t in edit.tokens]
    assert list(held_out.textposition) == ["middle right", "middle left"]  # away from the mark of what was asked


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.number(0.0312345), "0.0312"),
        (words.number(1240.4), "1,240"),
        (words.number(49152), "49,152"),
        (words.number(9.996), "10"),
        (words.number(0), "0"),
        (words.number(-1.5), "−1.5"),
        (words.number(2.13e-6, 2), "2.1e−6"),
        (words.number(float("nan")), "–"),
        (words.ratio(20), "20×"),
        (words.ratio(0.05), "1/20"),
        (words.ratio(0.8), "0.8×"),
        (words.nats(0.03), "0.03 nats"),
        (words.one_in(0.0005), "1 in 2,000"),
        (words.one_in(0.055), "1 in 18"),
        (words.one_in(0.9), "90 %"),
        (words.one_in(0.0), "never"),
        (words.size(93e6), "93 MB"),
        (words.quantity(134.5e6), "134 million"),
        (words.duration(12.2), "12 s"),
        (words.duration(190), "3 min"),
        (words.duration(3900), "1 h 5 min"),
        (words.plural(1, "token"), "1 token"),
        (words.plural(1200, "token"), "1,200 tokens"),
    ],
)
def test_numbers_read_as_people_say_them(said: str, wanted: str) -> None:
    assert said == wanted


def test_log_axes_are_labelled_in_plain_numbers() -> None:
    axis = look.ratio_axis(0.01, 100)
    assert axis["ticktext"][0] == "1/100" and axis["ticktext"][-1] == "100×"
    assert "1e" not in "".join(look.count_axis(1, 50_000)["ticktext"])
    assert look.one_in_axis(0, 15)["ticktext"][3] == "1 in 1,000"
