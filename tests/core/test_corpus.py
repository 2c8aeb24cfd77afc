"""Every corpus is read or refused in a sentence; the two parts never share a document."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.corpus import AT_ONCE, _blocks, plan_windows, read_corpus, self_sampled_tokens, tokenise
from core.errors import AnalysisError, Cancelled, InputError
from core.settings import Settings
from tests.tiny import tiny_tokenizer


def test_the_sampler_is_what_it_says() -> None:
    corpus = read_corpus("sampler")
    assert len(corpus.texts) >= 120
    assert sum(len(text.split()) for text in corpus.texts) >= 25_000
    assert len(set(corpus.texts)) == len(corpus.texts)
    assert not corpus.cut


def test_python_docs_is_there() -> None:
    assert len(read_corpus("python-docs").texts) > 50


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_each_file_format_gives_its_texts(tmp_path: Path) -> None:
    texts = ["one river", 'two mills, "quoted"\nand a line']
    frame = pd.DataFrame({"n": [1, 2], "body": texts})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in texts) + "\n\n")
    for name in ("a.csv:body", "a.parquet", "a.parquet:body", "a.jsonl", "a.jsonl:text"):
        assert read_corpus(str(tmp_path / name)).texts == tuple(texts), name
    write(tmp_path / "plain.txt", "\ufeffhello there")
    assert read_corpus(str(tmp_path / "plain.txt")).texts == ("hello there",)
    assert len(read_corpus(str(tmp_path)).texts) == 7


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("x.txt", b"", "holds no text"),
        ("x.txt", b" \n\n ", "holds no text"),
        ("x.txt", b"\x7fELF\x00\x01", "binary"),
        ("x.txt", b"caf\xe9 au lait and more", "not UTF-8"),
        ("x.pdf", b"%PDF", "give one of .txt"),
        ("x.jsonl", b"{", "is not JSON"),
        ("x.jsonl", b"[1]", "neither a text nor an object"),
        ("x.jsonl", b'{"a": "b", "c": "d"}', "Which column"),
        ("x.csv", b"a,b\n1,2\n", "No column of"),
        ("x.csv", b"", "holds no text"),
        ("x.csv", b"\n\n", "no CSV"),
        ("x.csv", b"text\n", "has a header and no rows"),
        ("x.parquet", b"PAR1 not really", "no Parquet"),
        (
            "x.jsonl",
            b'{"text": ["a"], "id": "b"}\n{"text": "words", "id": "c"}',
            "Line 1 of 'x.jsonl' has no text in 'text' but a list",
        ),
        ("x.jsonl", b'{"text": "words", "id": "c"}\n{"text": 3, "id": "b"}', "has no text in 'text' but a number"),
        ("x.csv", b"a,a\n1,words\n", "has 2 columns 'a': give each a name of its own"),
        ("x.csv", b"text,text\n1,words\n", "has 2 columns 'text'"),
        ("x.csv", b'id;text\n1;"some words"\n', "has one column, 'id;text': separate its fields by commas, not by ';'"),
        ("x.csv", b"id\ttext\n1\twords\n", "separate its fields by commas"),
        ("x.csv", b"id,text\n1,words\n\n2\n", "Line 4 of 'x.csv' has 1 of the header's 2 fields and no 'text'"),
    ],
)
def test_bad_files_get_a_sentence(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        read_corpus(write(tmp_path / file, content))


def test_json_that_is_json_is_not_called_none(tmp_path: Path) -> None:
    """Lists in lists beyond what is read, and a number with more digits than Python takes for an int."""
    for odd, said in (
        ("[" * 10**5 + "]" * 10**5, "Line 1 .* nested thousands deep"),
        ("9" * 5000, "No column .* holds texts"),
    ):
        with pytest.raises(InputError, match=said):
            read_corpus(write(tmp_path / "x.jsonl", f'{{"text": {odd}}}'))
    assert read_corpus(write(tmp_path / "y.jsonl", f'{{"text": "words", "id": {"9" * 5000}}}')).texts == ("words",)


def test_columns_that_are_not_named_are_counted(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(1000)]
    with pytest.raises(InputError, match=r"it has 'c0', .*, 'c7' and 992 more\.$"):
        read_corpus(write(tmp_path / "x.csv", ",".join(names) + "\n" + ",".join(["some words"] * 1000)))


def test_a_null_in_a_column_of_texts_is_no_text(tmp_path: Path) -> None:
    lines = '{"text": null, "id": "a"}\n{"text": "words", "id": "b"}\n'
    assert read_corpus(write(tmp_path / "x.jsonl", lines.encode())).texts == ("words",)


def test_parquet_columns_that_share_a_name(tmp_path: Path) -> None:
    texts, numbers = pa.array(["words"] * 3), pa.array([1, 2, 3])
    pq.write_table(pa.Table.from_arrays([numbers, texts], names=["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="has 2 columns 'text': give each a name of its own"):
        read_corpus(str(tmp_path / "twice.parquet"))
    inside = pa.array([{"b": 1}, {"b": 2}, {"b": 3}])
    pq.write_table(pa.Table.from_arrays([inside, texts], names=["a", "a.b"]), tmp_path / "dot.parquet")
    assert read_corpus(f"{tmp_path / 'dot.parquet'}:a.b").texts == ("words",) * 3


def test_a_folder_of_folders_without_end(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        for _ in range(1500):
            os.mkdir("d")  # noqa: PTH102 (a path of them all is longer than a path may be)
            os.chdir("d")
    with pytest.raises(InputError, match="nested hundreds deep"):
        read_corpus(str(tmp_path))
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest could not either


class Strange:
    """A tokenizer that gives the same for every text."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.ids] * len(texts)}


def test_a_tokenizer_that_is_to_blame_and_not_the_text() -> None:
    corpus = read_corpus("sampler")
    with pytest.raises(AnalysisError, match=r"token id 4,000,000,000, and no model has so many tokens"):
        tokenise(corpus, Strange(4_000_000_000), 16)  # type: ignore[arg-type]
    documents = tokenise(corpus, Strange(), 16)  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="no more than a token of any text of 'sampler': it is damaged"):
        plan_windows(documents, Settings(), name="sampler")


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="of Linux")
def test_what_is_no_text_on_the_disk_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to, and a file of the system's that says it is empty and never ends."""
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match=r"pipe\.txt' is neither a file nor a folder"):
        read_corpus(str(tmp_path / "pipe.txt"))
    (tmp_path / "good.txt").write_text("A text of some words.", "utf-8")
    (tmp_path / "link.txt").symlink_to("/no/such/file")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for odd in ("link.txt", "loop.txt", "pipe.txt"):
        with pytest.raises(
            InputError, match=f"'{odd}' in the folder .* is no ordinary file, or a link to nowhere: remove"
        ):
            read_corpus(str(tmp_path))
        (tmp_path / odd).unlink()
    (tmp_path / "folder.txt").mkdir()
    assert read_corpus(str(tmp_path)).texts == ("A text of some words.",)
    (tmp_path / "good.txt").unlink()
    (tmp_path / "endless.txt").symlink_to("/proc/kmsg")
    with pytest.raises(InputError, match="holds no text"):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize("name", ["", "no-such-corpus", "hub:x", "self:0", "self:many", "/"])
def test_bad_names_get_a_sentence(name: str) -> None:
    with pytest.raises(InputError):
        if self_sampled_tokens(name) is None:
            read_corpus(name, local_paths=name != "/")


def test_a_missing_column_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a', 'b'"):
        read_corpus(write(tmp_path / "x.csv", "a,b\n1,2\n") + ":c")


def test_paths_are_closed_where_strangers_reach_the_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not offered here"):
        read_corpus(write(tmp_path / "x.txt", "secret words"), local_paths=False)


def test_plain_text_is_cut_into_blocks_of_four_windows(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    text = "\n\n".join(f"# Part {i}\nThe river ran past seventeen old mills." for i in range(120))
    corpus = read_corpus(write(tmp_path / "x.md", text))
    blocks = tokenise(corpus, tokenizer, context=16)
    assert len(blocks) > 10 and min(map(len, blocks)) >= 4 * 16
    assert tokenizer.decode(np.concatenate(blocks)) == text


def test_reading_tells_how_far_it_is_and_can_be_stopped(tmp_path: Path) -> None:
    corpus = read_corpus(
        write(tmp_path / "x.txt", "\n\n".join("The river ran past old mills. " * 99 for _ in range(1200)))
    )
    assert len(corpus.texts[0]) > 3 * AT_ONCE
    told: list[float | None] = []
    tokenise(corpus, tiny_tokenizer(), 16, lambda phrase, share: told.append(share))
    assert told[0] == 0 and 4 <= len(told) <= 8 and told == sorted(told, key=float) and told[-1] < 1  # type: ignore[arg-type, operator]

    def stop(phrase: str, share: float | None) -> None:
        if share:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        tokenise(corpus, tiny_tokenizer(), 16, stop)


@pytest.mark.parametrize("end", ["\n", " "])
def test_a_text_without_blank_lines_is_cut_too(tmp_path: Path, end: str) -> None:
    text = end.join(f"Mill number {i} stands by the river." for i in range(300))
    blocks = tokenise(read_corpus(write(tmp_path / "x.txt", text)), tiny_tokenizer(), context=16)
    assert len(blocks) > 10 and min(map(len, blocks)) >= 4 * 16
    assert tiny_tokenizer().decode(np.concatenate(blocks)) == text


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 400), min_size=2, max_size=30),
    positions=st.integers(64, 3000),
    context=st.integers(2, 100),
    held_out=st.floats(0.05, 1.0),
    seed=st.integers(0, 5),
    first=st.sampled_from([None, 7]),
)
def test_the_split(
    lengths: list[int], positions: int, context: int, held_out: float, seed: int, first: int | None
) -> None:
    documents = [np.arange(n, dtype=np.int32) + 1000 * i for i, n in enumerate(lengths)]
    chosen = Settings(positions, context, held_out, seed)
    try:
        plan = plan_windows(documents, chosen, first_token=first)
    except AnalysisError as error:
        assert sum(lengths) < 2000, error
        return
    seen: tuple[set[int], set[int]] = (set(), set())
    for chunk in plan.chunks:
        real = chunk.targets >= 0
        places = chunk.positions[real]
        assert not seen[chunk.held_out] & set(places.tolist())
        seen[chunk.held_out].update(places.tolist())
        document, offset = places >> 32, places & 0xFFFFFFFF
        np.testing.assert_array_equal(chunk.inputs[real], 1000 * document + offset)
        np.testing.assert_array_equal(chunk.targets[real], 1000 * document + offset + 1)  # never across documents
        assert real.sum(1).max() <= context
        if first is not None:
            assert (chunk.inputs[:, 0] == first).all() and not real[:, 0].any()
    fit, judge = seen
    assert not {p >> 32 for p in fit} & {p >> 32 for p in judge}
    assert (len(fit), len(judge)) == (plan.positions, plan.positions_held_out)
    assert len(fit) <= positions and len(judge) <= chosen.positions_held_out
    if sum(lengths) > 20 * positions and max(lengths) * 4 < sum(lengths):
        assert len(fit) == positions


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(AnalysisError, match="one document"):
        plan_windows([np.arange(5000, dtype=np.int32)], Settings())


def test_a_short_rest_joins_the_block_before_it_and_no_other() -> None:
    pieces = [np.full(n, i, dtype=np.int32) for i, n in enumerate((5, 5, 5, 2))]
    assert [block.tolist() for block in _blocks(pieces, 5)] == [[0] * 5, [1] * 5, [2] * 5 + [3] * 2]
    assert [block.tolist() for block in _blocks(pieces[2:], 5)] == [[2] * 5 + [3] * 2]


def test_a_file_deep_in_a_folder_is_named_by_its_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.jsonl").write_text('"words"' if name == "a" else "{")
    with pytest.raises(InputError, match=r"Line 1 of 'b/text\.jsonl' is not JSON"):
        read_corpus(str(tmp_path))


def test_a_folder_that_changes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listing(folder: Path, pattern: str) -> Iterator[Path]:
        yield tmp_path / "a.txt"
        raise FileNotFoundError(2, "No such file or directory", str(tmp_path / "gone"))

    monkeypatch.setattr(Path, "rglob", listing)
    said = r"cannot be listed as a whole .No such file or directory: .*gone.: name a folder of texts"
    with pytest.raises(InputError, match=said):
        read_corpus(str(tmp_path))


def test_lines_that_end_as_on_old_macs(tmp_path: Path) -> None:
    (tmp_path / "mac.txt").write_bytes(b"one line\rand another\rand a third\r" * 40)
    (tmp_path / "unix.txt").write_bytes(b"one line\nand another\nand a third\n" * 40)
    assert read_corpus(str(tmp_path / "mac.txt")).texts == read_corpus(str(tmp_path / "unix.txt")).texts


def test_a_record_without_its_text_is_left_out_wherever_it_stands(tmp_path: Path) -> None:
    records = [{"text": None, "title": "first"}, {"text": "a text " * 50, "title": "second"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert read_corpus(str(tmp_path / "a.jsonl")).texts == (records[1]["text"],)


@pytest.mark.parametrize("values", [[1, 2], [[1], [2]], [b"a", b"b"]])
def test_a_column_that_holds_no_text_is_not_offered_as_one(values: list[object], tmp_path: Path) -> None:
    pd.DataFrame({"text": values}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"^No column of 'a\.parquet' holds texts; it has 'text': give a file where one"
    ):
        read_corpus(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(("different", "told"), [(40, False), (1, True)])
def test_copies_of_what_fits_are_not_called_unseen(different: int, told: bool) -> None:
    documents = [np.arange(64, dtype=np.int32) + number % different for number in range(40)]
    note = plan_windows(documents, Settings(positions=1000, context=16)).note
    assert ("100 % is, word for word, also in the text that fits" in note) is told and note == note.strip()


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_reading_ends_after_a_million_records_blank_ones_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else a small file of nothing would be read for minutes."""
    monkeypatch.setattr("core.corpus.MOST_TEXTS", 1000)
    monkeypatch.setattr("core.corpus.TOLD_EVERY", 100)
    monkeypatch.setattr("core.records.BLANK_AT_MOST", 100)
    file = tmp_path / name
    told: list[str] = []

    def tell(phrase: str, share: float | None) -> None:
        told.append(phrase)

    for first in ("", "A text of words."):
        texts = [first, *[""] * 3000, "Another, further down."]
        if name == "x.parquet":
            pq.write_table(pa.table({"text": texts}), file)
        elif name == "x.csv":
            file.write_text("text\n" + "\n".join(texts))
        else:
            file.write_text("\n".join(f'{{"text": "{text}"}}' if text else "" for text in texts))
        told.clear()
        if first:
            corpus = read_corpus(str(file), progress=tell)
            assert corpus.texts == (first,) and corpus.note == "Only the first 1,000 records were read."
        else:
            with pytest.raises(InputError, match=r"holds no text|has a header and blank lines alone"):
                read_corpus(str(file), progress=tell)
        assert told[0] == "Reading texts" and len(told) <= 10


def test_blank_lines_before_the_texts_are_passed_over(tmp_path: Path) -> None:
    csv = read_corpus(write(tmp_path / "x.csv", "\n\nid,said\n" + "\n" * 300 + '1,"A text, of words."\n'))
    assert csv.texts == ("A text, of words.",)
    lines = "\n" * 300 + '{"id": "3", "text": "A text."}\n \n{"id": "4", "text": null}\n'
    assert read_corpus(write(tmp_path / "x.jsonl", lines)).texts == ("A text.",)


def test_a_column_whose_texts_begin_late(tmp_path: Path) -> None:
    """`text` is taken by its name while nothing else stands in it; of another the sentence tells where it was looked for."""
    late = ",1\n" * 300 + '"A text of words.",1\n'
    assert read_corpus(write(tmp_path / "x.csv", f"text,label\n{late}")).texts == ("A text of words.",)
    said = r"holds texts in its first 256 records, where it has 'said', 'label': give"
    with pytest.raises(InputError, match=said):
        read_corpus(write(tmp_path / "y.csv", f"said,label\n{late}"))
    assert read_corpus(f"{tmp_path / 'y.csv'}:said").texts == ("A text of words.",)
    with pytest.raises(InputError, match=r"holds texts in its first 256 records, where it has 'id': give"):
        read_corpus(write(tmp_path / "x.jsonl", '{"id": 1}\n' * 300 + '{"text": "A text of words."}\n'))
