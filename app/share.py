"""What a page shows, as text that gives the same numbers elsewhere: a command for a shell, a few lines of Python.

Tokens are named by their numbers and every text is quoted, so whatever stands in a prompt or an address stays an argument.
Pure functions of a `View`; the tests run what they return and compare the numbers with the page's.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

from app import runs, uploads
from app.state import Choice
from core.errors import InputError
from core.results import Sampling
from core.steering import Edit

FEW_SHOT = (16, 64, 256, 1024, 4096, 16384)
COMMAND = "headscope"


@dataclass(frozen=True)
class View:
    """What the numbers of a page depend on.

    Attributes:
        page: its name in the address.
        choice: what is analysed. more: what else is compared with it.
        edits: tokens and ratios; tokens: their texts, for comments.
        direction, calibrate: of the edit. prompt, chat: what is gone on from. sampling: how texts are drawn.
        figure: which of the page's figures is shown.
        series: the checkpoints.
        method, removed: how the head is pruned.
        data: a sweep's data set.
    """

    page: str
    choice: Choice
    edits: tuple[Edit, ...] = ()
    tokens: tuple[str, ...] = ()
    direction: str = "minimum-variance"
    calibrate: bool = True
    prompt: str | None = None
    chat: bool = False
    sampling: Sampling | None = None
    figure: str = ""
    series: str = ""
    method: str = ""
    removed: float = 0.0
    more: tuple[Choice, ...] = ()
    data: str = ""


# --- for a shell ------------------------------------------------------------------------------------------------------


def command(view: View) -> str:
    """One command, or several, each on a line of its own (a quoted text may hold line ends)."""
    return "\n".join(_COMMANDS[view.page](view))


def _line(words: list[str], operands: tuple[str, ...] = ()) -> str:
    """A command line; operands that look like options stand behind `--`."""
    if any(operand.startswith("-") for operand in operands):
        return shlex.join([COMMAND, words[0], *words[1:], "--", *operands])
    return shlex.join([COMMAND, words[0], *operands, *words[1:]])


def _option(name: str, value: object) -> list[str]:
    text = str(value)
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def _analysing(choice: Choice) -> list[str]:
    words = [*_option("--corpus", uploads.named(choice.corpus)), *_option("--positions", choice.positions)]
    return words + (_option("--seed", choice.seed) if choice.seed else [])


def _editing(view: View) -> list[str]:
    words = []
    for edit in view.edits:
        words += ["--token", f"id:{edit.token_id}", "--ratio", _number(edit.ratio)]
    if view.edits and view.direction != "minimum-variance":
        words += ["--direction", view.direction]
    return words + (["--no-calibrate"] if view.edits and not view.calibrate else [])


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def report_command(view: View) -> str:
    """The command that writes the report of a view."""
    words = ["report", *_editing(view), *_analysing(view.choice)]
    if view.prompt is not None:
        sampling = view.sampling
        words += _option("--prompt", view.prompt) + (["--chat"] if view.chat else [])
        words += ["--samples", str(sampling.samples if sampling else 0)]
        if sampling:
            words += ["--new-tokens", str(sampling.new_tokens), *_drawing(view)]
    return _line([*words, "--out", "report.html"], (view.choice.model,))


def _drawing(view: View) -> list[str]:
    """How texts are drawn, where it is not the usual way."""
    sampling, usual = view.sampling or Sampling(), Sampling()
    words: list[str] = []
    for name, value, plain in (
        ("--temperature", sampling.temperature, usual.temperature),
        ("--top-k", sampling.top_k, usual.top_k),
        ("--top-p", sampling.top_p, usual.top_p),
        ("--noise-seed", sampling.seed, view.choice.seed),
    ):
        words += [name, _number(value)] if value != plain else []
    return words


def _fit_command(view: View) -> list[str]:
    tables = {"Weights": ["--weights", "weights.csv"], "Tokens": ["--tokens", "tokens.csv"]}
    return [_line(["fit", *_analysing(view.choice), *tables.get(view.figure, [])], (view.choice.model,))]


def _model_command(view: View) -> list[str]:
    return [_line(["doctor"], (view.choice.model,)), *_fit_command(replace(view, figure=""))]


def _steer_command(view: View) -> list[str]:
    if not view.edits:
        return _fit_command(view)
    words = ["steer", *_editing(view), *_analysing(view.choice)]
    if view.prompt is not None:
        words += _option("--prompt", view.prompt) + (["--chat"] if view.chat else [])
    if view.figure == "Few positions":
        words += ["--few-shot", ",".join(map(str, FEW_SHOT))]
    return [_line(words, (view.choice.model,))]


def _generate_command(view: View) -> list[str]:
    sampling = view.sampling or Sampling()
    words = ["generate", *_option("--prompt", view.prompt or ""), *_editing(view), *_analysing(view.choice)]
    words += ["--samples", str(sampling.samples), "--new-tokens", str(sampling.new_tokens)]
    words += _drawing(view)
    return [_line(words + (["--chat"] if view.chat else []), (view.choice.model,))]


def _pruning_command(view: View) -> list[str]:
    methods = ",".join(dict.fromkeys((view.method, "saliency", "random")))
    words = ["prune", "--method", methods, "--remove", _number(view.removed), *_analysing(view.choice)]
    return [_line(words, (view.choice.model,))]


def _compare_command(view: View) -> list[str]:
    words = ["compare"]
    for each in view.more:
        words += ["--row", each.model, uploads.named(each.corpus), str(each.positions)]
    seed = view.more[0].seed if view.more else 0
    words += (_option("--seed", seed) if seed else []) + (_option("--data", view.data) if view.data else [])
    return [_line(words)]


def _places(series: str) -> list[str]:
    """The checkpoints of a series one by one; as one where a quotation mark is not closed, which the page says."""
    try:
        return runs.places(series)
    except InputError:
        return [series]


def _dynamics_command(view: View) -> list[str]:
    run = runs.parse(view.series)
    if run is None:
        return [_line(["dynamics"], tuple(_places(view.series)))]
    words = ["dynamics", "--train", "--size", run.size, *_option("--corpus", uploads.named(run.corpus))]
    return [_line(words + (["--seed", str(run.seed)] if run.seed else []))]


_COMMANDS: dict[str, Callable[[View], list[str]]] = {
    "model": _model_command,
    "encoding": _fit_command,
    "steering": _steer_command,
    "samples": _generate_command,
    "pruning": _pruning_command,
    "compare": _compare_command,
    "dynamics": _dynamics_command,
}


# --- in Python --------------------------------------------------------------------------------------------------------


def python(view: View) -> str:
    """A few lines that print the page's numbers; in a notebook the last one shows the figure."""
    return "\n".join(_PYTHON[view.page](view)) + "\n"


def _literal(text: str) -> str:
    """A text as Python source, in double quotes where nothing in it needs care."""
    plain = repr(text)
    return f'"{text}"' if plain == f"'{text}'" and '"' not in text else plain


def _opening(view: View, *names: str, more: tuple[str, ...] = ()) -> list[str]:
    """The imports and the analysis."""
    choice = view.choice
    settings = f"positions={choice.positions}" + (f", seed={choice.seed}" if choice.seed else "")
    call = f"{_literal(choice.model)}, {_literal(uploads.named(choice.corpus))}, Settings({settings})"
    wanted = ", ".join(sorted({"Analysis", "Settings", *names}, key=lambda name: (name.islower(), name)))
    return [f"from core import {wanted}", *more, "", f"analysis = Analysis({call})"]


def _edits(view: View) -> list[str]:
    """The list of edits, each with its token's text as a comment (a literal: it holds no line end)."""
    texts = [*view.tokens, *[""] * (len(view.edits) - len(view.tokens))]
    lines = [
        f"    Edit({edit.token_id}, {_number(edit.ratio)}),{f'  # {text!r}' if text else ''}"
        for edit, text in zip(view.edits, texts, strict=True)
    ]
    return ["edits = [", *lines, "]"]


def _steered(view: View) -> str:
    how = "" if view.direction == "minimum-variance" else f", {_literal(view.direction)}"
    return f"steering = analysis.steer(edits{how}{'' if view.calibrate else ', calibrate=False'})"


_FIGURES = {
    "": "figures.encoding.fit_scatter(encoding)",
    "Fit": "figures.encoding.fit_scatter(encoding)",
    "Weights": "figures.encoding.weights(encoding)",
    "Sparsity": "figures.encoding.sparsity(encoding)",
    "Why": "figures.encoding.predictors(encoding)",
    "Map": "figures.encoding.output_space(encoding)",
    "Tokens": "token_table(encoding)",
}


def _encoding_python(view: View) -> list[str]:
    tables = view.figure == "Tokens"
    names, more = ((), ("from core.tables import token_table",)) if tables else (("figures",), ())
    return [
        *_opening(view, *names, more=more),
        "encoding = analysis.encoding()",
        'print(f"R² {encoding.r2:.4f}; on tokens it has not seen {encoding.r2_held_out_tokens:.4f}, "',
        '      f"on text it has not seen {encoding.r2_held_out_text:.4f}")',
        _FIGURES.get(view.figure, _FIGURES[""]),
    ]


def _model_python(view: View) -> list[str]:
    return [
        *_opening(view),
        "facts, encoding = analysis.head_facts(), analysis.encoding()",
        'print(f"{encoding.vocab_size:,} tokens × {encoding.dim:,} dimensions; logits are off by at most "',
        '      f"{facts.check.max_logit_error:.2g}; perplexity {encoding.perplexity:.4g}, "',
        '      f"held-out {encoding.perplexity_held_out:.4g}")',
        "facts",
    ]


def _steering_python(view: View) -> list[str]:
    if not view.edits:
        return _encoding_python(replace(view, figure=""))
    lines = [
        *_opening(view, "Edit", "figures"),
        *_edits(view),
        _steered(view),
        "for token in steering.tokens:",
        '    print(f"{token.token!r} asked {token.target:.4g}×, got {token.realised_held_out:.4g}× on new text")',
    ]
    if view.prompt is not None:
        chat = ", chat=True" if view.chat else ""
        lines.append(f"next_token = analysis.next_token({_literal(view.prompt)}, steering{chat})")
    if view.figure == "Side effects":
        return [*lines, "figures.steering.side_effects([steering, *analysis.baselines(edits)])"]
    if view.figure == "Few positions":
        how = "" if view.direction == "minimum-variance" else f", direction={_literal(view.direction)}"
        lines.append(f"few_shot = analysis.few_shot(edits, {FEW_SHOT}{how})")
        return [*lines, f"figures.steering.few_shot(few_shot, {_number(view.edits[0].ratio)})"]
    return [*lines, "figures.steering.asked_and_realised(steering)"]


def _samples_python(view: View) -> list[str]:
    sampling, usual = view.sampling or Sampling(), Sampling()
    names = ("samples", "new_tokens", "temperature", "top_k", "top_p", "seed")
    told = [
        f"{n}={getattr(sampling, n)!r}" for n in names if n in names[:2] or getattr(sampling, n) != getattr(usual, n)
    ]
    edit = [*_edits(view), _steered(view)] if view.edits else ["steering = None"]
    chat = ", chat=True" if view.chat else ""
    return [
        *_opening(view, "Sampling", *(("Edit",) if view.edits else ())),
        *edit,
        f"sampling = Sampling({', '.join(told)})",
        f"texts = analysis.generate({_literal(view.prompt or '')}, steering, sampling{chat})",
        "for count in texts.counts:",
        '    print(f"{count.token!r}: {count.after} of {texts.steps_after} tokens, {count.before} before")',
        "texts",
    ]


def _pruning_python(view: View) -> list[str]:
    methods = list(dict.fromkeys((view.method, "saliency", "random")))
    return [
        *_opening(view, "figures"),
        f"found = analysis.prune({methods!r}, [{_number(view.removed)}])",
        "for each in found:",
        "    point = each.points[0]",
        '    print(f"{each.method}: KL {point.kl:.4g} nats, top prediction stays in {point.top1_agreement:.1%}")',
        f"figures.pruning.leaving(found[0], analysis.encoding(), {_number(view.removed)})",
    ]


_COMPARISONS = {
    "Sparsity": "figures.compare.sparsity(rows)",
    "Weights": "figures.compare.weights(rows)",
    "Steering": "figures.compare.accuracy(rows)",
    "Pruning": 'figures.compare.pruning(rows, "rotated")',
}


def _compare_python(view: View) -> list[str]:
    lines = [
        f"    compare_row(Analysis({_literal(each.model)}, {_literal(uploads.named(each.corpus))}, "
        f"Settings(positions={each.positions}{f', seed={each.seed}' if each.seed else ''}))),"
        for each in view.more
    ]
    if view.data:
        lines.append(f"    *read_data({_literal(view.data)}),")
    wanted = ["compare_row", "finding"] + (["read_data"] if view.data else [])
    return [
        "from core import Analysis, Settings, figures",
        f"from core.compare import {', '.join(wanted)}",
        "",
        "rows = [",
        *lines,
        "]",
        "print(finding(rows))",
        _COMPARISONS.get(view.figure, "figures.compare.fit(rows)"),
    ]


def _dynamics_python(view: View) -> list[str]:
    run = runs.parse(view.series)
    if run is None:
        call = f"found = dynamics({_places(view.series)!r})"
        opening = ["from core.series import dynamics", "", call]
    else:
        seed = f", seed={run.seed}" if run.seed else ""
        opening = [
            "from dataclasses import replace",
            "",
            "from core.series import train_series",
            "from core.train import SIZES",
            "",
            f"found = train_series({_literal(uploads.named(run.corpus))}, replace(SIZES[{_literal(run.size)}]{seed}))",
        ]
    imports = ["from core import figures", "from core.dynamics import finding"]
    at = next(i for i, line in enumerate(opening) if line.startswith("from core"))
    return [*opening[:at], *imports, *opening[at:], "print(finding(found))", "figures.dynamics.curves(found)"]


_PYTHON: dict[str, Callable[[View], list[str]]] = {
    "model": _model_python,
    "encoding": _encoding_python,
    "steering": _steering_python,
    "samples": _samples_python,
    "pruning": _pruning_python,
    "compare": _compare_python,
    "dynamics": _dynamics_python,
}
