"""What stands in a text file, one text at a time: .txt and .md whole, .jsonl, .csv and .parquet record by record.

However a file is made, reading it is bounded: a line by its length, a Parquet column by how far it unpacks, the whole by
what the reader takes before it stops. Every mistake in a file is one sentence.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from core import disk
from core.errors import InputError
from core.foreign import reason
from core.words import plural, whole_characters

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
LONGEST_LINE = 64 * 2**20
"""Characters (of a .jsonl: bytes) in a line; longer ones are refused, since a line is held as a whole."""
LOOKED_AT, LOOKED_AT_MOST = 256, 8 * 2**20
"""Records of a .csv or .jsonl that tell which of its columns are texts, and the characters after which no more are held."""
BLANK_AT_MOST = 100_000
"""Lines at the beginning of a file, blank ones too, among which these are looked for."""
UNPACKED_FREELY, UNPACKED_TIMES = 64 * 2**20, 500
"""A Parquet column larger than the first (bytes) may not unpack to more than so many times its size on disk."""


def texts_in(file: Path, column: str | None, limit: int) -> Iterator[str]:
    """The texts of a file, in order; empty ones where it has a line, a row or a record without: reading it can end there.

    Args:
        column: which holds the text, where records have several; None finds it.
        limit: characters after which the reader will stop.

    Raises:
        InputError: the file cannot be read, or not as what its name says.
    """
    try:
        if not file.stat().st_size:
            return  # nor opened: what the system's own files of no size give may never end
        match file.suffix.lower():
            case ".jsonl":
                found = _jsonl(file, column)
            case ".csv":
                found = _csv(file, column)
            case ".parquet":
                found = _parquet(file, column)
            case _:
                found = _plain(file, limit)
        for text in found:
            yield whole_characters(text)
    except OSError as error:
        raise InputError(
            f"The file {file.name!r} cannot be read ({disk.why(error)}): copy or write it anew."
        ) from error


def _plain(file: Path, limit: int) -> Iterator[str]:
    with file.open("rb") as opened:
        raw = opened.read(4 * limit)
        text = _decode(raw, file.name, cut=bool(opened.read(1)))[:limit]
        yield text if "\n" in text else text.replace("\r", "\n")  # lines that end as on old Macs


def _decode(raw: bytes, name: str, *, cut: bool = False) -> str:
    """Bytes as text. `cut`: they end where the reader stopped, perhaps inside a character."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"The file {name!r} begins like text in UTF-16: save text as UTF-8.")
    if b"\0" in raw:
        raise InputError(f"The file {name!r} is binary, not text: give {', '.join(SUFFIXES)}, text in UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(raw) - 4:
            return raw[: error.start].decode("utf-8-sig")
        raise InputError(
            f"The file {name!r} is not UTF-8 text (byte 0x{raw[error.start]:02x} at {error.start:,}): save it as UTF-8."
        ) from error


# --- JSON, a value a line ---------------------------------------------------------------------------------------------


def _jsonl(file: Path, column: str | None) -> Iterator[str]:
    """One column for the whole file, which its first records tell; what is no text in it is refused, not skipped."""
    lines = _json_lines(file)
    first = _beginning(lines, lambda line: len(line[1].strip()))
    name = column
    for number, line in chain(first, lines):
        if not line.strip():
            yield ""
            continue
        value = _parsed(file, number, line)
        if isinstance(value, str):
            yield value
            continue
        if not isinstance(value, dict):
            raise InputError(
                f"Line {number} of {file.name!r} is neither a text nor an object with a text: make it one, or take it "
                "out."
            )
        if name is None:
            looked_at = [_parsed(file, *each) for each in first if each[1].strip()]
            name = _json_column(file.name, [each for each in looked_at if isinstance(each, dict)] or [value])
        if name not in value:
            raise InputError(f"Line {number} of {file.name!r} has no {name!r}; it has {_listed(value)}.")
        text = value[name]
        if text is None or isinstance(text, str):
            yield text or ""
        else:
            raise InputError(
                f"Line {number} of {file.name!r} has no text in {name!r} but {_JSON_KINDS[type(text)]}: give every record a "
                "text there, or null."
            )


_JSON_KINDS = {list: "a list", dict: "an object", int: "a number", float: "a number", bool: "true or false"}


def _json_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Every line with its number."""
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise _too_long(file, number)
            yield number, _decode(line, file.name)


def _parsed(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line, parse_int=float)  # of an int Python refuses what has thousands of digits
    except RecursionError as error:
        raise InputError(
            f"Line {number} of {file.name!r} is nested thousands deep: one JSON value a line is expected, with a text in it."
        ) from error
    except ValueError as error:
        raise InputError(f"Line {number} of {file.name!r} is not JSON: one JSON value a line is expected.") from error


def _json_column(file: str, records: list[dict[str, Any]]) -> str:
    strings: dict[str, bool] = {}
    for record in records:
        for name, value in record.items():
            strings[name] = strings.get(name, False) or isinstance(value, str)
    if all(record.get("text", 0) is None for record in records):
        strings["text"] = True
    return _text_column(file, strings, len(records))


def _too_long(file: Path, number: int) -> InputError:
    return InputError(
        f"Line {number} of {file.name!r} is longer than {LONGEST_LINE // 2**20} million characters: cut its texts smaller."
    )


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv(file: Path, column: str | None) -> Iterator[str]:
    with file.open("rb") as opened:
        start = opened.read(2**16)
        _decode(start, file.name, cut=len(start) == 2**16)
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(_lines(text, file), strict=True)
        try:
            yield from _column(file, column, rows)
        except UnicodeDecodeError as error:
            raise InputError(
                f"The file {file.name!r} is not UTF-8 text (byte 0x{error.object[error.start]:02x}, after line "
                f"{rows.line_num:,}): save it as UTF-8."
            ) from error
        except csv.Error as error:
            raise InputError(
                f"The file {file.name!r} is no CSV that can be read (near line {rows.line_num:,}: {reason(error)}): "
                "write it anew."
            ) from error


def _lines(text: TextIO, file: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise _too_long(file, number)
        yield line


def _column(file: Path, column: str | None, rows: Any) -> Iterator[str]:
    header = next((row for row in islice(rows, BLANK_AT_MOST) if row), None)
    if header is None:
        raise InputError(
            f"The file {file.name!r} is no CSV that can be read, for it begins with blank lines alone: give a file with a "
            "header and texts."
        )
    if len(header) == 1 and column is None and (other := next((c for c in ";\t|" if c in header[0]), None)):
        raise InputError(
            f"{file.name!r} has one column, {header[0][:60]!r}: separate its fields by commas, not by {other!r}."
        )
    fitting = _fitting(file, rows, len(header))
    first = _beginning(fitting, lambda row: sum(map(len, row[1])))
    if not any(row for _, row in first):
        no_rows = "blank lines alone" if first else "no rows"
        raise InputError(f"{file.name!r} has a header and {no_rows}: give a file with texts.")
    words = {}
    for place, name in enumerate(header):
        values = [row[place] for _, row in first if place < len(row)]
        words[name] = any(map(_is_word, values)) or (name == "text" and not any(map(str.strip, values)))
    name = column or _text_column(file.name, words, sum(map(bool, (row for _, row in first))))
    if name not in header:
        raise InputError(f"{file.name!r} has no column {name!r}; it has {_listed(header)}.")
    _refuse_twice(file.name, header, name)
    place = header.index(name)
    for number, row in chain(first, fitting):
        if not row:
            yield ""
            continue
        if place >= len(row):
            raise InputError(
                f"Line {number:,} of {file.name!r} has {len(row)} of the header's {len(header)} fields and no {name!r}: "
                "complete it, or take it out."
            )
        yield row[place]


def _fitting(file: Path, rows: Any, fields: int) -> Iterator[tuple[int, list[str]]]:
    """The rows, each with its line; one with more fields than the header is a text whose commas are not
    quoted, so its parts mean nothing."""
    for row in rows:
        if any(row[fields:]):
            raise InputError(
                f"Line {rows.line_num:,} of {file.name!r} has {len(row)} fields and the header has {fields}: put texts that "
                "hold commas into quotes."
            )
        yield rows.line_num, row


def _is_word(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return bool(text.strip())
    return False


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(file: Path, column: str | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            strings = {field.name: _is_text(field.type) for field in table.schema_arrow}
            name = column or _text_column(file.name, strings)
            if not strings.get(name, False):
                raise InputError(f"{file.name!r} has no text column {name!r}; it has {_listed(strings)}.")
            _refuse_twice(file.name, table.schema_arrow.names, name)
            _refuse_bomb(file, name, table.metadata)
        # as a dictionary: a long text that stands in many rows is not unpacked once for each of them
        with pq.ParquetFile(file, read_dictionary=[name]) as table:
            for batch in table.iter_batches(batch_size=1024, columns=[name]):
                yield from (value.as_py() or "" for value in batch.column(name))
    except UnicodeDecodeError as error:
        raise InputError(f"The file {file.name!r} holds texts that are not UTF-8: write it anew.") from error
    except (pa.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            f"The file {file.name!r} is no Parquet file that can be read ({reason(error)}): write it anew."
        ) from error


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _refuse_bomb(file: Path, name: str, metadata: Any) -> None:
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            part = metadata.row_group(group).column(place)
            packed, unpacked = part.total_compressed_size, part.total_uncompressed_size
            if part.path_in_schema == name and unpacked > max(UNPACKED_FREELY, UNPACKED_TIMES * packed):
                raise InputError(
                    f"The column {name!r} of {file.name!r} would unpack to {unpacked / max(packed, 1):,.0f} times its size, "
                    f"and at most {UNPACKED_TIMES} times is read: take the texts that repeat out of it, or save it as .jsonl."
                )


# --- which column -----------------------------------------------------------------------------------------------------


def _beginning(records: Iterator[T], size: Callable[[T], int]) -> list[T]:
    """The first records, which are looked at together, and the blank ones among them."""
    found: list[T] = []
    seen = looked_at = 0
    for record in islice(records, BLANK_AT_MOST):
        found.append(record)
        seen += size(record)
        looked_at += bool(size(record))
        if looked_at == LOOKED_AT or seen > LOOKED_AT_MOST:
            break
    return found


def _text_column(file: str, strings: dict[str, bool], looked_at: int = 0) -> str:
    """`text` if there is one, else the only column of strings; of as many records as were looked at, 0 where the file tells."""
    if strings.get("text"):
        return "text"
    names = [name for name, is_string in strings.items() if is_string]
    if len(names) == 1:
        return names[0]
    if not names:
        where = f" in its first {plural(looked_at, 'record')}, where it has" if looked_at else "; it has"
        raise InputError(f"No column of {file!r} holds texts{where} {_listed(strings)}: give a file where one does.")
    raise InputError(
        f"Which column of {file!r} is the text? Call it text, or give the file alone, as {file}:COLUMN; it has "
        f"{_listed(strings)}."
    )


def _refuse_twice(file: str, names: list[str], name: str) -> None:
    if names.count(name) > 1:
        raise InputError(f"{file!r} has {names.count(name)} columns {name!r}: give each a name of its own.")


def _listed(names: Iterable[object]) -> str:
    all_of_them = list(names)
    items = [repr(str(name)[:60]) for name in all_of_them[:8]]
    more = f" and {len(all_of_them) - 8:,} more" if len(all_of_them) > 8 else ""
    return ", ".join(items) + more or "no columns"
