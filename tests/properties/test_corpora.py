"""Every corpus is read as what it is or refused with one sentence: odd bytes, odd scripts, odd sizes, odd Parquet."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis import Analysis
from core.corpus import Corpus, plan_windows, read_corpus, tokenise
from core.encoding import Encoding
from core.errors import AnalysisError, InputError
from core.settings import Settings
from core.store import Store
from tests.ledger import attempt, refuse, survived
from tests.properties.texts import FIXED, nasty
from tests.tiny import tiny_model, tiny_tokenizer

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
SETTINGS = Settings(positions=64, context=8, held_out=0.5)
TOKENIZER = tiny_tokenizer()
written = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80)
documents = st.lists(written, min_size=1, max_size=12)


def keep(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def is_whole(corpus: Corpus) -> None:
    """Tokens stand for the text they came from, and no window has a token of another document."""
    found = tokenise(corpus, TOKENIZER, SETTINGS.context)
    if not corpus.cut:
        kept = [text for text in corpus.texts if len(TOKENIZER.encode(text)) > 1]
        assert [TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) for ids in found] == kept
    elif sum(map(len, found)) > 4 * SETTINGS.context:
        assert TOKENIZER.decode(np.concatenate(found)) == "".join(corpus.texts)
    plan = attempt(lambda: plan_windows(found, SETTINGS))
    for chunk in plan.chunks if plan else ():
        real = chunk.targets >= 0
        places = chunk.positions[real]
        following = [found[place >> 32][(place & 0xFFFFFFFF) + 1] for place in places]
        np.testing.assert_array_equal(chunk.targets[real], following)
        assert len(set(places.tolist())) == len(places)


# --- what was written comes back --------------------------------------------------------------------------------------


@FIXED
@given(documents)
def test_records_come_back_as_they_were_written(tmp_path: Path, texts: list[str]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table).writerows([["text", "number"], *([text, "1"] for text in texts)])
    pq.write_table(pa.table({"text": texts, "number": list(range(len(texts)))}), tmp_path / "a.parquet")
    names = (
        keep(tmp_path, "a.jsonl", "\n".join(json.dumps({"text": text, "n": 1}) for text in texts).encode()),
        keep(tmp_path, "a.csv", table.getvalue().encode()) + ":text",
        str(tmp_path / "a.parquet"),
    )
    right = tuple(text for text in texts if text.strip())
    for name in names:

        def is_right(corpus: Corpus) -> None:
            assert corpus.texts == right
            is_whole(corpus)

        attempt(lambda name=name: read_corpus(name), is_right)


@FIXED
@given(documents, st.sampled_from(["\n\n", "\n", "\r\n\r\n", "\n# ", " ", "\u2029"]))
def test_a_text_comes_back_whole(tmp_path: Path, texts: list[str], between: str) -> None:
    text = between.join(texts)

    def is_right(corpus: Corpus) -> None:
        assert corpus.texts == (text.removeprefix("\ufeff"),)
        is_whole(corpus)

    attempt(lambda: read_corpus(keep(tmp_path, "a.txt", text.encode())), is_right)


@FIXED
@given(st.binary(max_size=200) | st.lists(nasty, max_size=6).map(lambda all: "\n".join(all).encode("utf-8", "replace")))
def test_any_bytes_under_any_name(tmp_path: Path, content: bytes) -> None:
    for suffix in SUFFIXES:
        attempt(lambda suffix=suffix: read_corpus(keep(tmp_path, "a" + suffix, content)), is_whole)
        attempt(lambda suffix=suffix: read_corpus(str(tmp_path / f"a{suffix}") + ":text"), is_whole)


@FIXED
@given(st.recursive(st.none() | st.booleans() | st.floats() | nasty, lambda x: st.lists(x) | st.dictionaries(nasty, x)))
def test_any_json(tmp_path: Path, value: Any) -> None:
    line = json.dumps(value).encode()
    attempt(lambda: read_corpus(keep(tmp_path, "a.jsonl", b"\n".join([line] * 3))), is_whole)
    attempt(lambda: read_corpus(keep(tmp_path, "b.jsonl", b'{"text": ' + line + b"}\n")), is_whole)


# --- contents that are no text ----------------------------------------------------------------------------------------

EVIL: dict[str, bytes] = {
    "nothing.txt": b"",
    "blanks.txt": b" \t\r\n\n" * 1000,
    "zero.txt": b"one two\0three four",
    "zero.csv": b"text\none\0two\n",
    "zero.jsonl": b'{"text": "one\0two"}\n',
    "latin1.txt": "café au lait. ".encode("latin-1") * 100,
    "latin1.csv": "text\ncafé au lait\n".encode("latin-1"),
    "late.csv": b"text\n" + b"plain words\n" * 8000 + "café\n".encode("latin-1"),
    "utf16.txt": "the river ran past".encode("utf-16"),
    "cut.txt": "the owl \U0001f989".encode()[:-2],
    "deep.jsonl": b"[" * 100_000 + b"]" * 100_000,
    "digits.jsonl": b"9" * 100_000,
    "number.jsonl": b"1e999999999",
    "lists.jsonl": b'[1, 2]\n["a"]\n',
    "nul.jsonl": b"null\n",
    "one-column.csv": b"number\n1\n2\n",
    "quotes.csv": b'text\n"never closed\n',
    "fields.csv": b"text\nwords, that hold, commas\n",
    "zip.txt": b"PK\x03\x04" + bytes(range(256)),
    "gzip.csv": b"\x1f\x8b\x08\x00" + bytes(range(256)),
    "short.parquet": b"PAR1",
    "no-end.parquet": b"PAR1" + b"\x15" * 500 + b"\xff\xff\xff\x7fPAR1",
    "a.zip": b"PK\x03\x04",
    "a.txt.gz": b"\x1f\x8b\x08\x00",
    "a.pkl": b"\x80\x04.",
    "a.py": b"import os",
}


@pytest.mark.parametrize("name", sorted(EVIL))
def test_contents_that_are_no_text(tmp_path: Path, name: str) -> None:
    refuse(lambda: read_corpus(keep(tmp_path, name, EVIL[name])), InputError)


def test_a_text_in_another_encoding_is_called_so(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        file = keep(tmp_path, "a.txt", "\ufeffthe river ran past".encode(encoding))
        assert "begins like text in UTF-16: save text as UTF-8" in refuse(
            lambda file=file: read_corpus(file), InputError
        )


def test_half_a_character_in_json(tmp_path: Path) -> None:
    """JSON can hold what no encoding can; a tokenizer and a file get the character that stands for it."""
    corpus = read_corpus(keep(tmp_path, "a.jsonl", b'"ends in half an owl \\ud83e"\n"another \\udd89 line"\n'))
    assert corpus.texts == ("ends in half an owl \ufffd", "another \ufffd line")
    attempt(lambda: corpus, is_whole)


# --- sizes ------------------------------------------------------------------------------------------------------------


def bounded(work: Callable[[], Any], seconds: float, megabytes: float) -> Any:
    """What `work` gives; it may take so long and leave so much memory in use."""
    before, started = psutil.Process().memory_info().rss, time.process_time()
    try:
        return work()
    finally:
        assert time.process_time() - started < seconds
        assert psutil.Process().memory_info().rss - before < megabytes * 1e6


@pytest.mark.parametrize("one", ["a", "\n", "🦉", "x ", "\u202e"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_much_of_one_character(tmp_path: Path, one: str, suffix: str) -> None:
    text = one * (5_000_000 // len(one.encode()))
    content = {".txt": text, ".jsonl": json.dumps(text), ".csv": f'text\n"{text}"\n'}[suffix].encode()
    said = bounded(lambda: refuse(lambda: read_corpus(keep(tmp_path, f"a{suffix}", content)), InputError), 20, 200)
    assert "nothing but" in said or "holds no text" in said or "No column" in said


def test_a_gigabyte_of_zeros(tmp_path: Path) -> None:
    """Sparse, so that it takes no room here either; only so much of it is looked at as would be read."""
    for suffix in SUFFIXES:
        with (tmp_path / f"a{suffix}").open("wb") as file:
            file.truncate(2**30)
        bounded(lambda suffix=suffix: refuse(lambda: read_corpus(str(tmp_path / f"a{suffix}")), InputError), 10, 300)
        (tmp_path / f"a{suffix}").unlink()


def test_a_line_of_ten_million_characters(tmp_path: Path) -> None:
    words = "the river ran past old mills and nobody knew why "
    text = (words * (10_000_000 // len(words) + 1))[:10_000_000]

    def read() -> Corpus:
        corpus = read_corpus(keep(tmp_path, "a.txt", text.encode()))
        assert corpus.texts == (text,)
        sample = Corpus("a", (text[:600_000],), True, "", "")
        ids = np.concatenate(tokenise(sample, TOKENIZER, 256))
        assert TOKENIZER.decode(ids) == text[:600_000]
        return corpus

    assert bounded(lambda: attempt(read), 30, 400) is not None


# --- Parquet ----------------------------------------------------------------------------------------------------------

MANY = ["the river ran", "past old mills", None, "🦉 שלום"]
ODD: dict[str, Any] = {
    "int64": [1, 2, 3, 4],
    "double": [1.0, float("nan"), None, 2.0],
    "bool": [True, False, None, True],
    "null": pa.nulls(4),
    "binary": [b"a", b"\xff", None, b""],
    "decimal": [decimal.Decimal("1.5")] * 4,
    "timestamp": [datetime.datetime(2025, 1, 1)] * 4,
    "list": [["a"], [], None, ["b", "c"]],
    "struct": [{"text": "a"}] * 4,
    "map": pa.array([[("a", "b")]] * 4, pa.map_(pa.string(), pa.string())),
    "fixed": pa.array([b"ab"] * 4, pa.binary(2)),
    "duration": pa.array([1] * 4, pa.duration("s")),
    "string": MANY,
    "large": pa.array(MANY, pa.large_string()),
    "dictionary": pa.array(MANY).dictionary_encode(),
}


@pytest.mark.parametrize("kind", sorted(ODD))
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_parquet_with_odd_types(tmp_path: Path, kind: str, compression: str) -> None:
    path = tmp_path / "a.parquet"
    for table in (
        pa.table({"text": ODD[kind]}),
        pa.table({kind: ODD[kind], "n": [1] * 4}),
        pa.table({"text": ODD[kind][:0]}),
    ):
        pq.write_table(table, path, compression=compression, row_group_size=3)

        def is_right(corpus: Corpus) -> None:
            assert corpus.texts == tuple(text for text in MANY if text)

        attempt(lambda: read_corpus(str(path)), is_right)


def test_parquet_made_to_break_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"ok\xff\xfe")]
    )
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    nested = pa.table({"text": [[["x"]]]})
    for table in (
        pa.table({}),
        pa.table({"text": broken}),
        twice,
        nested,
        pa.table({"": ["a b"]}),
        pa.table({"x.y": ["a b"]}),
    ):
        pq.write_table(table, path)
        attempt(lambda: read_corpus(str(path)))
    pq.write_table(pa.table({"text": ["the river ran past"] * 500}), path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(len(whole), size=3):
            damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        attempt(lambda: read_corpus(str(path)))


# --- all the way to the numbers ---------------------------------------------------------------------------------------

SCRIPTS = {
    "right-to-left": "בראשית היה הנהר, והנהר עבר ליד הטחנה הישנה. كان النهر يجري قرب الجسر. ",
    "emoji": "🦉🌊🏞️👩‍👩‍👧‍👦🇮🇸 the owl 🦉 flew over the 🌊. ",
    "combining": "Z̸̡͚͎a̷͔l̵̰g̶̲o̵ speaks é é. ",
    "controls": "\x01\x02\x7f one \x1b[31m two \u202e three \u2066. ",
    "private": "\ue000\uf8ff\U000f0000 words \ufdd0 and \uffff. ",
    "markup": "<script>alert(1)</script> {{ 7*7 }} ${x} `id` $x^2$ :red[x]. ",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def is_sound(found: Encoding) -> None:
    assert found.alpha.sum() + 1e-9 >= 0.9 and (found.alpha > 0).all() and found.alpha.sum() <= 1 + 1e-6
    assert np.isfinite(found.predicted).all() and np.isfinite(found.weights).all() and found.r2 <= 1 + 1e-12


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_are_analysed(tmp_path: Path, model: str, store: Store, script: str) -> None:
    paragraphs = [SCRIPTS[script] * (2 + number % 3) for number in range(40)]
    name = keep(tmp_path, "a.md", "\n\n".join(paragraphs).encode())
    analysis = Analysis(model, name, Settings(positions=300, context=32), store)
    is_sound(analysis.encoding())
    assert analysis.observation().fit.sum_p.sum() / analysis.observation().fit.n == pytest.approx(1, abs=1e-6)
    survived()


@pytest.mark.parametrize("text", ["a", "one", "one two", "a\n\nb", "one two\n\nthree four five"])
def test_texts_of_a_token_or_two(tmp_path: Path, model: str, store: Store, text: str) -> None:
    analysis = Analysis(model, keep(tmp_path, "a.txt", text.encode()), Settings(positions=64, context=2), store)
    refuse(lambda: analysis.encoding(), AnalysisError)
    if text == "a":
        with pytest.raises(AnalysisError, match=r"holds only 1 character: a few hundred words are the least"):
            analysis.encoding()
