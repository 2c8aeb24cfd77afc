"""One HTML file that holds an analysis: its figures, which can be zoomed, its sentences, settings, versions and hashes.

    headscope report smollm2 --token " road" --ratio 20 --out report.html

The file needs nothing else: plotly.js is inside, and its own content security policy forbids it the network. Texts of
tokens, models and files are hostile until escaped; here they are, in HTML and in the figures' JSON.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from core import __version__, show
from core.figures import Chart, encoding, head, pairs, sentences, steering, texts, words
from core.figures import dynamics as over_training
from core.figures.look import LIGHT, Look
from core.results import Sampling
from core.settings import Progress, local_path, no_progress
from core.store import write_text

if TYPE_CHECKING:
    from core.analysis import Analysis
    from core.dynamics import Dynamics
    from core.encoding import Encoding
    from core.model.facts import HeadFacts
    from core.results import Generated, NextToken
    from core.steering import Edit, Steering

VERSIONS = ("torch", "transformers", "numpy", "plotly")
TABLE_ROWS = 60
"""Rows of a figure's numbers in the report; all of them are in the CSV of `headscope fit` and of the dashboard."""
SWEEP = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""No network. `unsafe-eval`: plotly.js compiles its WebGL programs."""


@dataclass(frozen=True)
class Section:
    """A question, the sentence that answers it, and what stands below.

    Attributes:
        sentence, body: HTML, escaped already. warnings: the same, where a claim does not hold. facts: names and values,
            plain text. charts: each with its title, plain text.
    """

    question: str
    sentence: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    charts: tuple[tuple[str, Chart], ...] = ()
    body: str = ""


@dataclass(frozen=True)
class Report:
    """An analysis ready to be written. `provenance`: settings, versions and hashes, plain text."""

    title: str
    sections: tuple[Section, ...]
    provenance: tuple[tuple[str, str], ...]
    command: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a report tells besides the model and its encoding.

    Attributes:
        edits, direction, calibrate: tokens to steer. prompt, chat: where the next token is shown and texts go on from.
        sampling: how texts are drawn; None for no texts.
    """

    edits: tuple[Edit, ...] = ()
    direction: str = "minimum-variance"
    calibrate: bool = True
    prompt: str | None = None
    chat: bool = False
    sampling: Sampling | None = None


def report_of(
    analysis: Analysis,
    wanted: Wanted | None = None,
    *,
    dynamics: Dynamics | None = None,
    name: str = "",
    corpus: str = "",
    command: str = "",
    look: Look = LIGHT,
    progress: Progress = no_progress,
) -> Report:
    """Gather what there is to say; what is not in the store yet is computed.

    Args:
        dynamics: a run whose checkpoints are told of too.
        name, corpus: how model and text are called in the report, if not as the analysis calls them.
        command: that gives this report again.
        progress: may raise `Cancelled`.

    Raises:
        InputError, AnalysisError: as the steps of the analysis raise them.
    """
    wanted = wanted or Wanted()
    name, corpus = name or analysis.model, corpus or analysis.corpus_name
    found = analysis.encoding(progress)
    facts = analysis.head_facts(progress)
    ids = tuple(edit.token_id for edit in wanted.edits)
    sections = [_of_model(name, found, facts, look), _of_encoding(found, ids, look)]
    edited = analysis.steer(wanted.edits, wanted.direction, wanted.calibrate, progress) if wanted.edits else None
    at_prompt = None
    if wanted.prompt is not None:
        progress("Asking for the next token", None)
        at_prompt = analysis.next_token(wanted.prompt, edited, chat=wanted.chat)
    if edited is not None:
        sections.append(_of_steering(analysis, wanted, edited, at_prompt, look))
    if wanted.prompt is not None and wanted.sampling is not None:
        written = analysis.generate(wanted.prompt, edited, wanted.sampling, chat=wanted.chat, progress=progress)
        sections.append(_of_texts(written, wanted.sampling, look))
    if dynamics is not None and len(dynamics.curve) > 1:
        sections.append(_of_dynamics(dynamics, look))
    return Report(f"{name} on {corpus}", tuple(sections), _provenance(analysis, facts, name, corpus), command)


def _of_model(name: str, found: Encoding, facts: HeadFacts, look: Look) -> Section:
    told, check = facts.description, facts.check
    return Section(
        "What is this model's head?",
        sentences.model(name, found, facts),
        (
            ("Architecture", told.architecture),
            ("Parameters", words.quantity(told.parameters)),
            ("Positions that fit", f"{found.positions:,} of {words.plural(found.documents, 'document')}"),
            ("Positions that judge", f"{found.positions_held_out:,} of {found.documents_held_out:,} others"),
            ("Perplexity", words.number(found.perplexity)),
            ("Perplexity, held-out text", words.number(found.perplexity_held_out)),
        ),
        charts=(
            (
                "Are these the model's own logits?",
                head.agreement(check.max_logit_error, check.tolerance, check.half_precision_deviation, look),
            ),
            (
                "How much of the model is its head?",
                head.parameter_share(found.vocab_size * found.dim, told.parameters, told.tied, look),
            ),
        ),
    )


def _of_encoding(found: Encoding, marked: Sequence[int], look: Look) -> Section:
    return Section(
        "Is a token's average probability written in its embedding?",
        sentences.encoding(found),
        (
            ("R², fitted tokens", f"{found.r2:.4f} (adjusted {found.r2_adjusted:.4f})"),
            ("R², held-out tokens", f"{found.r2_held_out_tokens:.4f}"),
            ("R², held-out text", f"{found.r2_held_out_text:.4f}"),
            ("Spread around the line", words.nats(found.residual_std)),
            ("Direction A against −mean(h)", f"cosine {found.cosine_minus_mean_hidden:.3f}"),
            ("log Z between contexts", f"{words.number(found.log_z_mean)} ± {words.nats(found.log_z_std)}"),
            ("Effective dimensions", f"{words.number(found.effective_dims)} of {found.dim:,}"),
            ("Condition number", words.number(found.condition_number)),
        ),
        tuple(html.escape(told) for told in (found.note, *found.warnings) if told),
        (
            (
                f"{len(found.tokens):,} tokens, measured against predicted",
                encoding.fit_scatter(found, look, marked),
            ),
            ("The fitted direction, with 95 % intervals", encoding.weights(found, look)),
            ("How many dimensions does it take?", encoding.sparsity(found, look)),
            ("From no fitted number to the fitted line", encoding.predictors(found, look)),
            ("The output embedding on its two main axes", encoding.output_space(found, look)),
        ),
    )


def _of_steering(
    analysis: Analysis, wanted: Wanted, found: Steering, at_prompt: NextToken | None, look: Look
) -> Section:
    points = analysis.sweep(wanted.edits, SWEEP, wanted.direction, wanted.calibrate)
    charts = [("Asked, and realised on text it has and has not seen", steering.asked_and_realised(found, look))]
    if len(points) > 1:
        charts.append(("Realised against asked, for the first token", steering.sweep(points, found, look)))
    judged = (found, *analysis.baselines(wanted.edits))
    charts.append(("What else moves, on held-out text", steering.side_effects(judged, look)))
    if at_prompt is not None:
        charts.append((f"The next token after “{wanted.prompt}”", texts.next_token(at_prompt, look)))
    how = "solved on the fitting text" if found.calibrated else "as given, not calibrated"
    return Section(
        "Can that knob be turned?",
        sentences.steering(found),
        (
            ("Direction", f"{found.direction}, {how}"),
            ("KL divergence, held-out", words.nats(found.kl)),
            ("Top prediction stays, held-out", words.percent(found.top1_agreement)),
            ("Length of the change", words.number(found.delta_norm)),
        ),
        charts=tuple(charts),
    )


def _of_texts(found: Generated, sampling: Sampling, look: Look) -> Section:
    steered = {count.id for count in found.counts}
    sides = zip(found.before, found.after, found.before_tokens, found.after_tokens, strict=True)
    charts: tuple[tuple[str, Chart], ...] = ()
    if found.counts:
        charts = (("How often it came", texts.sampled_counts(found.counts, found.steps_after, look)),)
    return Section(
        "What does it write then?",
        sentences.texts(found),
        (
            ("The prompt", found.prompt),
            ("Temperature", words.number(sampling.temperature)),
            ("Top-k, top-p", f"{sampling.top_k or 'all'}, {words.number(sampling.top_p)}"),
            ("Seed of the noise", str(sampling.seed)),
        ),
        charts=charts,
        body='<p class="quiet">Same noise on both sides; shaded from the first token that differs.</p>'
        + "".join(pairs.pair(*side, steered) for side in sides),
    )


def _of_dynamics(found: Dynamics, look: Look) -> Section:
    chart = over_training.curves(found, look)
    return Section(
        "When does the encoding appear in training?",
        html.escape(chart.summary),
        (
            ("Checkpoints", found.source),
            ("Frequencies of", found.corpus),
            ("Checkpoints read", f"{len(found.curve):,}"),
        ),
        charts=(
            ("What the embedding holds, and the loss", chart),
            ("How the weights turn", over_training.rotation(found, look)),
        ),
    )


def _provenance(analysis: Analysis, facts: HeadFacts, name: str, corpus: str) -> tuple[tuple[str, str], ...]:
    settings = ", ".join(f"{key.replace('_', '-')} {value}" for key, value in asdict(analysis.settings).items())
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in VERSIONS)
    return (
        ("Model", name),
        ("Revision", facts.revision or "none"),
        ("SHA-256 of the model", facts.sha256),
        ("Text", corpus),
        ("SHA-256 of the text", analysis.corpus.sha256),
        ("Settings", settings),
        ("Ran on", f"{facts.device}, body in {facts.description.dtype}, head in float32"),
        ("Headscope", __version__),
        ("Versions", f"Python {platform.python_version()}, {versions}"),
        ("Written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def write_report(found: Report, path: str | Path, look: Look = LIGHT) -> Path:
    """Write a report whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    target = local_path(str(path)) or Path(path)
    write_text(target, page(found, look))
    return target


def page(found: Report, look: Look = LIGHT) -> str:
    """The report as one HTML page."""
    from plotly.offline import get_plotlyjs

    figures = [chart.figure for section in found.sections for _, chart in section.charts]
    drawn = ",".join(_safe(figure.to_json()) for figure in figures)
    sheet = (Path(__file__).with_name("report.css")).read_text("utf-8") + pairs.STYLE
    for place, colour in (
        ("HS_BEFORE", look.before),
        ("HS_AFTER_TEXT", look.after_text),
        ("HS_AFTER", look.after),
    ):
        sheet = sheet.replace(place, colour)
    number = 0
    parts = []
    for section in found.sections:
        parts.append(_section(section, number))
        number += len(section.charts)
    title = html.escape(found.title)
    again = f"<h3>The same again</h3><pre>{html.escape(found.command)}</pre>" if found.command else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Headscope: {title}</title><style>{sheet}</style></head><body><main>"
        f'<h1>{title}</h1><p class="quiet">A report of Headscope {__version__}: token probabilities and the output '
        "embedding. Figures can be zoomed by dragging; a double click goes back. Everything is inside this file.</p>"
        "<noscript><p>The figures need JavaScript; their numbers stand in the tables below them.</p></noscript>"
        f"{''.join(parts)}<section><h2>Where these numbers come from</h2>{_facts(found.provenance)}{again}</section></main>"
        f'<script type="application/json" id="figures">[{drawn}]</script>'
        f"<script>{get_plotlyjs()}</script><script>{_DRAW}</script></body></html>\n"
    )


_DRAW = """
const config = {responsive: true, displaylogo: false, displayModeBar: "hover"};
JSON.parse(document.getElementById("figures").textContent).forEach((figure, number) => {
  Plotly.newPlot(document.getElementById("figure-" + number), figure.data, figure.layout, config);
});
"""


def _section(section: Section, number: int) -> str:
    warnings = "".join(f'<p class="warning">{told}</p>' for told in section.warnings)
    charts = "".join(_chart(title, chart, number + at) for at, (title, chart) in enumerate(section.charts))
    return (
        f'<section><h2>{html.escape(section.question)}</h2><p class="sentence">{section.sentence}</p>'
        f"{_facts(section.facts)}{warnings}{section.body}{charts}</section>"
    )


def _facts(items: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f"<div{_HELD_OUT if 'held-out' in name else ''}><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in items
    )
    return f"<dl>{cells}</dl>" if cells else ""


_HELD_OUT = ' class="held-out"'


def _chart(title: str, chart: Chart, number: int) -> str:
    summary, height = html.escape(chart.summary), chart.figure.layout.height or 420
    rows = show.table(chart.table.head(TABLE_ROWS).to_dict("records"), len(chart.table), TABLE_ROWS)
    return (
        f'<figure><h3>{html.escape(title)}</h3><div class="plot" id="figure-{number}" role="img" '
        f'aria-label="{summary}" style="height: {height}px"></div><figcaption>{summary}</figcaption>'
        f"<details><summary>Numbers</summary>{rows}</details></figure>"
    )


def _safe(document: str) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    json.loads(document)  # a figure that is no JSON would break every figure of the page
    return document.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
