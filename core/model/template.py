"""Renders one chat template and ends: run as a program of its own, so that nothing a template does reaches Headscope.

A template can double a text until memory is full, or raise a number to a power that never comes to an end; neither can be
stopped from within the process. So this one is given little memory and little time by the system, no files and no network,
and Jinja's immutable sandbox besides, set up as in transformers' `chat_template_utils`. In: one JSON object on stdin with
`template`, `variables`, `seconds` and `most` (characters of the result). Out: one with `text` or with `error`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

import jinja2.ext
from jinja2 import nodes, sandbox
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace

MEMORY = 2**29
"""Bytes of address space."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks in training what the model said; here its body is text like any other."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Attributes(Namespace):
    """A template's `namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        Namespace.__init__(self, {})
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"{name} is no name for an attribute")
        Namespace.__setitem__(self, name, value)


def render(template: str, variables: dict[str, Any]) -> str:
    """The template's text; raises whatever it raises."""

    def raise_exception(message: object) -> None:
        raise TemplateError(str(message))

    def tojson(value: object, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": _Attributes,
    }
    return environment.from_string(template).render(variables)


def _bounded(seconds: int) -> None:
    """No more memory, time or files than a template needs, where the system can see to that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    asked = json.load(sys.stdin)
    _bounded(asked["seconds"])
    try:
        text = render(asked["template"], asked["variables"])
        too_long = len(text) > asked["most"]
        answer = {"error": f"it makes {len(text):,} characters"} if too_long else {"text": text}
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except RecursionError:
        answer = {"error": "it never ends"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
