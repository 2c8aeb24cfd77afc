"""A model's chat template is a program of a stranger: it gives what transformers gives, and can do nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import gguf
import psutil
import pytest

from core.analysis import Analysis
from core.errors import AnalysisError
from core.model import chat, resolve
from core.settings import Settings
from core.store import Store
from tests.ledger import attempt, refuse, survived
from tests.tiny import tiny_gguf, tiny_model, tiny_tokenizer

ORDINARY = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' ~ m.content | trim ~ ' [/INST]' }}"
    "{% elif not loop.first %}{% continue %}{% endif %}{% endfor %}",
    "blocks": """
{%- set ns = namespace(found=false, count=0) %}
{% for m in messages %}
    {%- set ns.count = ns.count + loop.index %}
    {% if tools is none and documents is not defined or not documents %}
{{ m | tojson }} {{ m | tojson(indent=2) }}
    {% endif %}
{% endfor %}
{{ ns.count }}{{ ns.found }}
""",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
    "dates": "{{ strftime_now('%Y') }} {{ messages[0]['content'].split()[-1] }} {{ messages | length }}",
    "macro": "{% macro say(x) %}<{{ x | upper }}>{% endmacro %}{{ say(messages[-1].content) }}{{ eos_token }}",
}
PROMPTS = (
    "Where is the river?",
    'quotes " and \\ and <b>markup</b>',
    "{{ 7 * 7 }} {% raw %}",
    "שלום 🦉\n\nnew line",
    "",
)


@pytest.mark.parametrize("name", sorted(ORDINARY))
def test_an_ordinary_template_gives_what_it_gives_in_transformers(name: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = ORDINARY[name]
    for prompt in PROMPTS if name != "dates" else PROMPTS[:1]:
        turns = [{"role": "user", "content": prompt}]
        right = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert chat.in_chat(tokenizer, prompt, "it") == right
        survived()


@pytest.mark.parametrize("template", ["{{ nothing }}", "3", "{{ bos_token }}{{ messages | length }}"])
def test_a_template_that_leaves_the_prompt_out_is_refused(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert "leaves the prompt out" in refuse(lambda: chat.in_chat(tokenizer, "Where?", "it"), AnalysisError)


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ joiner.__init__.__globals__.__builtins__.open('MARK', 'w') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ ('%s' | attr('format'))('x') }}{{ ''|attr('__class__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(namespace) }}",
    "{{ '{x.__class__}'.format_map({'x': messages}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/hostname' %}",
    "{{ self._TemplateReference__context.environment.loader }}{{ self.__init__ }}",
    "{{ request.application }}{{ config.items() }}{{ get_flashed_messages.__globals__ }}",
    "{{ raise_exception('no\n\x1b[31mturns\u202e') }}",
    "{% for",
    "{{ undefined_thing.attribute }}",
)
SINKS = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "power": "{{ 7 ** (7 ** 9) }}",
    "long": "{{ 'a' * 3000000000 }}",
    "doubled": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "wide": "{{ '%1000000000d' % 7 }}",
    "centred": "{{ 'a'.center(10000000000) }}",
    "list": "{{ [0] * 10000000000 }}",
    "much": "{{ 'river ' * 100000 }}",
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("template", ESCAPES)
def test_there_is_no_way_out(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template.replace("MARK", str(tmp_path / "ran"))

    def says_nothing(text: str) -> None:  # what is not to be seen is undefined, which Jinja writes as nothing
        assert text in ("", "%s")

    attempt(lambda: chat.in_chat(tokenizer, "hello", "it"), says_nothing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(SINKS))
def test_neither_time_nor_memory_goes_into_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = SINKS[name]
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    refuse(lambda: chat.in_chat(tokenizer, "hello", "it"), AnalysisError)
    assert time.monotonic() - started < chat.PATIENCE + 5
    assert psutil.Process().memory_info().rss - before < 50e6


def test_several_templates_and_none_is_the_usual_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"tool_use": "{{ 1 }}"}
    refuse(lambda: chat.in_chat(tokenizer, "hello", "it"), AnalysisError)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "gguf"])
def test_wherever_a_hostile_template_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The model itself is a good one and is analysed; only the chat format is refused."""
    hostile = "{{ lipsum.__globals__['os'].system('touch " + str(tmp_path / "ran") + "') }}"
    folder = tiny_model("llama", tmp_path / "model")
    name = str(folder)
    if place == "gguf":
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "write_header_to_file",
            lambda self, write=gguf.GGUFWriter.write_header_to_file: (self.add_chat_template(hostile), write(self)),
        )
        name = str(tiny_gguf(tmp_path / "tiny.gguf", folder))
    elif place.endswith(".json"):
        known = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(known | {"chat_template": hostile}))
    else:
        (folder / place).write_text(hostile)
    analysis = Analysis(name, "sampler", Settings(positions=200, context=32), Store(tmp_path / "store"))
    assert analysis.next_token("the river").before.sum() > 0
    assert analysis.loaded().tokenizer.chat_template == hostile
    said = refuse(lambda: analysis.next_token("the river", chat=True), AnalysisError)
    assert "chat template" in said and not (tmp_path / "ran").exists()
    assert resolve(name, cache=tmp_path / "store").sha256
