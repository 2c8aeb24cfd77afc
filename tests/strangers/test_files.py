"""Files of a stranger: pickles, code, bombs and names that lead elsewhere. Nothing of them runs, and nothing else is read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app import uploads
from app.rules import Rules
from core.analysis import Analysis
from core.corpus import read_corpus
from core.errors import AnalysisError, HeadscopeError, InputError
from core.model import load_model, resolve
from core.model.names import parse_model
from core.model.weights import read_header
from core.settings import Settings
from core.store import Store
from tests.ledger import attempt, refuse, refused, survived
from tests.properties.texts import FIXED
from tests.tiny import tiny_gguf, tiny_model

ROOT = Path(__file__).parents[2]


class Payload:
    """Pickled, it writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (f"__import__('pathlib').Path({str(self.mark)!r}).touch()",)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A good model, to be made a bad one."""
    place = tmp_path / "model"
    place.mkdir()
    for path in model.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def analysed(folder: Path, tmp_path: Path) -> float:
    settings = Settings(positions=200, context=32)
    return Analysis(str(folder), "sampler", settings, Store(tmp_path / "store")).encoding().r2


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "beside"),
    [(name, False) for name in ("pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.pkl", "model.ckpt")]
    + [("pytorch_model.bin", True), ("model.pt", True)],
)
def test_a_pickle_is_never_opened(copy: Path, tmp_path: Path, name: str, beside: bool) -> None:
    """It works, as the first line shows; beside safetensors it is passed by, alone it is refused."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    torch.save({"lm_head.weight": Payload(tmp_path / "ran")}, copy / name)
    (copy / "training_args.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    if beside:
        attempt(lambda: analysed(copy, tmp_path))
    else:
        (copy / "model.safetensors").unlink()
        assert "never read" in refuse(lambda: analysed(copy, tmp_path), InputError)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "tiny.gguf", "text.txt", "a.parquet"]
)
def test_a_pickle_under_another_name(copy: Path, tmp_path: Path, name: str) -> None:
    torch.save({"lm_head.weight": Payload(tmp_path / "ran")}, copy / name)
    (copy / f"raw-{name}").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    if name in ("text.txt", "a.parquet"):
        for each in (name, f"raw-{name}"):
            refuse(lambda each=each: read_corpus(str(copy / each)), InputError)
    else:
        refuse(lambda: analysed(copy / name if name.endswith(".gguf") else copy, tmp_path), HeadscopeError)
    assert not (tmp_path / "ran").exists()


def test_results_in_the_cache_are_no_pickles(copy: Path, tmp_path: Path) -> None:
    """Somebody else's cache, with a pickle in the place of every result: computed again, nothing of it is opened."""
    right = analysed(copy, tmp_path)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert analysed(copy, tmp_path) == right and len(files) > 2
    assert not (tmp_path / "ran").exists()
    survived()


# --- code -------------------------------------------------------------------------------------------------------------

CODE = ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py", "custom_generate/generate.py", "mine.py")
ENTRIES: dict[str, dict[str, Any]] = {
    "a class": {"auto_map": {"AutoModelForCausalLM": "mine.Mine", "AutoConfig": "mine.Mine"}},
    "a type of its own": {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}},
    "a type of its own, quietly": {"model_type": "mine"},
    "another repository": {"auto_map": {"AutoModelForCausalLM": "org/code--mine.Mine"}},
    "a kernel": {"_attn_implementation": "org/kernel"},
    "an attention of code": {"attn_implementation": "org/kernel:mine"},
    "weights elsewhere": {"transformers_weights": "pytorch_model.bin"},
    "trust": {"trust_remote_code": True, "auto_map": {"AutoModel": "mine.Mine"}},
    "quantised by code": {"quantization_config": {"quant_method": "mine", "modules": "mine.Mine"}},
}


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_no_code_in_a_folder_is_run(copy: Path, tmp_path: Path, entry: str) -> None:
    for name in CODE:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(
            f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Mine: ...\nclass MineConfig: ...\n"
        )
    change(copy / "config.json", **ENTRIES[entry])
    change(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]}, trust_remote_code=True)
    change(copy / "generation_config.json", custom_generate="mine", trust_remote_code=True)
    attempt(lambda: analysed(copy, tmp_path), lambda r2: fine(r2 <= 1))
    assert not (tmp_path / "ran").exists() and str(copy) not in sys.path


def fine(true: bool) -> None:
    assert true


def test_the_command_runs_nothing_either(copy: Path, tmp_path: Path) -> None:
    """Standing in the hostile folder, whose modules have the names of those that the command imports."""
    for name in ("torch", "numpy", "core", "app", "sitecustomize", "usercustomize", "jinja2", "json"):
        (copy / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    change(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "torch.Mine"})
    command = Path(sys.executable).with_name("headscope")
    if not command.is_file():
        pytest.skip("headscope is not installed as a command here")
    done = subprocess.run([command, "doctor", "."], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (tmp_path / "ran").exists(), done.stderr
    refused(done.stderr.strip().splitlines()[-1].removeprefix("headscope: "))


# --- headers that promise too much ------------------------------------------------------------------------------------


def bounded(work: Callable[[], Any]) -> Any:
    """Whatever a file promises, finding out takes little time and memory."""
    before, started = psutil.Process().memory_info().rss, time.process_time()
    found = work()
    assert time.process_time() - started < 20 and psutil.Process().memory_info().rss - before < 400e6
    return found


def header(entries: Any, length: int | None = None, body: bytes = b"\0" * 16) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape: list[Any], start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "length beyond the file": header({}, 2**63),
    "length of all bytes": header({}, 2**64 - 1),
    "no length": b"\0\0",
    "deep": header(b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "many": header({f"t{i}": tensor([0], 0, 0) for i in range(10_000)}),
    "petabytes": header({"a": tensor([2**30, 2**30], 0, 2**62)}),
    "overflow": header({"a": tensor([2**63, 2**63], 0, 16)}),
    "negative": header({"a": tensor([-4, -1], 0, 16)}),
    "overlap": header({"a": tensor([4], 0, 16), "b": tensor([4], 0, 16)}),
    "hole": header({"a": tensor([2], 8, 16)}),
    "backwards": header({"a": tensor([4], 16, 0)}),
    "floats": header({"a": tensor([1.5], 0.0, 1e400)}),
    "digits": header(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 16]}}'),
    "no json": header(b"\xff\xfe{}"),
    "a list": header([1, 2]),
    "twice": header(b'{"a": 1, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
    "too many": header({f"t{i}": tensor([0], 0, 0) for i in range(250_000)}),
    "blanks": header(b" " * 5_000_000),
    "no dtype": header({"a": {"shape": [4], "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_a_safetensors_header_that_is_a_trap(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / "model.safetensors").write_bytes(HEADERS[name])
    bounded(lambda: refuse(lambda: load_model(resolve(str(copy), cache=tmp_path / "cache")), AnalysisError))
    attempt(lambda: read_header(copy / "model.safetensors"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner)
    ),
    max_leaves=8,
)


@FIXED
@given(st.dictionaries(st.text(max_size=3), json_values, max_size=3), st.integers(0, 2**64 - 1) | st.none())
def test_any_safetensors_header(tmp_path: Path, entries: dict[str, Any], length: int | None) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(entries, length))
    attempt(lambda: read_header(path))


GGUFS = {
    "no version": b"GGUF",
    "many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + b"\0" * 64,
    "many values": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + b"\0" * 64,
    "long key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"a" * 64,
    "long array": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 2**40) + b"\0" * 64,
    "no such type": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77) + b"\0" * 64,
    "version 99": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
}


@pytest.mark.parametrize("name", sorted(GGUFS))
def test_a_gguf_header_that_is_a_trap(tmp_path: Path, name: str) -> None:
    (tmp_path / "trap.gguf").write_bytes(GGUFS[name])
    bounded(lambda: refuse(lambda: resolve(str(tmp_path / "trap.gguf"), cache=tmp_path / "cache"), AnalysisError))


def test_damaged_ggufs(tmp_path: Path, model: Path) -> None:
    whole, random = tiny_gguf(tmp_path / "whole.gguf", model).read_bytes(), np.random.default_rng(0)
    for number in range(12):
        damaged = bytearray(whole)
        for place in random.integers(4, 6000, size=4):  # where the header is
            damaged[place] = int(random.integers(256))
        path = tmp_path / f"damaged-{number}.gguf"
        path.write_bytes(damaged)
        bounded(lambda path=path: attempt(lambda: load_model(resolve(str(path), cache=tmp_path / "cache"))))


# --- names that lead elsewhere ----------------------------------------------------------------------------------------

ELSEWHERE = (
    *("/etc/passwd", "../../etc/passwd", "..", "~/.ssh/id_rsa", "file:///etc/passwd", "//server/share", "C:\\windows"),
    *(
        "org/../../etc",
        "org/name@../../x",
        "org/name@a/../../b",
        "..%2f..%2fetc",
        "org%2f..%2fname",
        "\\\\server\\share",
    ),
    *(
        "upload:0123456789abcdef/../../x",
        "upload:../x/y",
        "upload:0123456789abcdef/.hidden",
        "sampler/../../x",
        "org//name",
    ),
)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    own = Rules("public", "demo", None, "http://192.0.2.1:8501")
    refuse(lambda: own.admit(name, "sampler", 1024), InputError)
    refuse(lambda: own.admit("demo", name, 1024), InputError)
    refuse(lambda: parse_model(name, local_paths=False), InputError)
    refuse(lambda: read_corpus(name, local_paths=False), InputError)
    assert uploads.find(name) is None
    kept = Path(uploads.keep(name, b"words"))
    assert kept.parent.parent == tmp_path / "uploads" and kept.read_bytes() == b"words"


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/../x.safetensors", "x.bin", "~.safetensors", ""]
)
def test_an_index_that_leads_elsewhere(copy: Path, tmp_path: Path, shard: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    refuse(lambda: analysed(copy, tmp_path), InputError)


# --- archives and bombs -----------------------------------------------------------------------------------------------


def zipped(content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside.txt", content)
    return made.getvalue()


@pytest.mark.parametrize(
    "suffix", [".txt", ".md", ".csv", ".jsonl", ".parquet", ".gz", ".zip", ".txt.gz", ".tar", ".xz"]
)
def test_archives_are_not_unpacked(tmp_path: Path, suffix: str) -> None:
    """Fifty megabytes of blanks, packed a thousand times smaller."""
    for pack in (gzip.compress, zipped):
        (tmp_path / f"a{suffix}").write_bytes(pack(b" " * 50_000_000))
        bounded(lambda: refuse(lambda: read_corpus(str(tmp_path / f"a{suffix}")), InputError))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_parquet_bomb(tmp_path: Path, compression: str, dictionary: bool) -> None:
    """100 MB of one text, in a few kilobytes: refused, or read no further than any other text, and then as one character."""
    path = tmp_path / "bomb.parquet"
    rows = pa.table({"text": pa.array(["a" * 100_000] * 1000)})
    pq.write_table(rows, path, compression=compression, use_dictionary=dictionary, row_group_size=1000)
    assert path.stat().st_size < 5_100_000
    bounded(lambda: refuse(lambda: read_corpus(str(path)), InputError))
