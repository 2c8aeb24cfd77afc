"""Every form of a model's name, and that nothing else gets through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from core.model import parse_model, resolve
from core.model.weights import check_names, shard_names


def model_folder(folder: Path, **config: object) -> Path:
    """A folder that has the files of a model, but no content worth loading."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize("name", ["demo", "smollm2"])
def test_the_two_names_of_our_own(name: str) -> None:
    source = parse_model(f" {name} ", local_paths=False)
    assert (source.name, source.kind, source.revision) == (name, name, None)


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("EleutherAI/pythia-70m@step512", "EleutherAI/pythia-70m", "step512"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", None),
        ("x/y_1.z@0123456789abcdef0123456789abcdef01234567", "x/y_1.z", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_hub_names(name: str, repo: str, revision: str | None) -> None:
    source = parse_model(name, local_paths=False)
    assert (source.kind, source.location, source.revision) == ("hub", repo, revision)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "gpt2", "/", "../secrets", "a/../b", "../a/b", "a/b/../../c", "/etc/passwd", "~/models", "~root/x"),
        *(
            "a/b@",
            "a/b@../../x",
            "a/b@-x",
            "a/b@x/..",
            "a/.b",
            ".a/b",
            "a/b.",
            "a/-b",
            "a/b--c",
            "a/b.git",
            "a//b",
            "a/b/c",
        ),
        *(
            "a/b\n",
            "a/b\x00",
            "a/\x1b[31mb",
            "a/b c",
            "a/b?x=1",
            "a/b#c",
            "a\\b",
            "hf://a/b",
            "https://example.org/a/b",
        ),
        *(
            "file.gguf",
            "a/b.gguf",
            "..\\x.gguf",
            "\u202ea/b",
            "á/b",
            "a/" + "b" * 97,
            "a" * 5000,
            "%2e%2e/b",
            "a/b@%00",
        ),
    ],
)
def test_a_server_refuses_what_is_no_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_model(name, local_paths=False)
    message = str(caught.value)
    assert message.isprintable() and "org/name" in message and "smollm2" in message
    assert len(message) < 400 and message.count(". ") == 0


@given(st.text(max_size=40) | st.from_regex(r"[\w./~@-]{1,12}/[\w./@-]{1,12}", fullmatch=True))
def test_any_text_at_all_is_a_name_or_one_sentence(text: str) -> None:
    try:
        source = parse_model(text, local_paths=False)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert source.kind in ("demo", "smollm2", "hub") and ".." not in source.location
        assert source.location in ("demo", "smollm2") or source.location.count("/") == 1


@pytest.mark.parametrize("local_paths", [True, False])
def test_an_address_is_no_name_and_no_folder(local_paths: bool) -> None:
    with pytest.raises(InputError, match=r"^'https://huggingface.co/org/name' is an address \(.*last two parts"):
        parse_model("https://huggingface.co/org/name", local_paths=local_paths)


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    model_folder(tmp_path / "m")
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match="cannot be read"):
        parse_model(str(tmp_path / "m"))


def test_a_server_reads_no_folder_even_if_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert parse_model("org/name").kind == "folder"
    assert parse_model("org/name", local_paths=False).kind == "hub"
    for path in (str(tmp_path / "org" / "name"), "./org/name"):
        with pytest.raises(InputError):
            parse_model(path, local_paths=False)


def test_a_folder_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    source = parse_model("mine")
    assert (source.kind, source.name, source.location) == ("folder", "mine", str((tmp_path / "mine").resolve()))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["config.json", "pytorch_model.bin"], "pickles (pytorch_model.bin)"),
        (["config.json", "consolidated.00.pth"], "pickles (consolidated.00.pth)"),
        (["config.json", "model.gguf"], "GGUF files (model.gguf)"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["config.json"], "no model.safetensors"),
        (["model.safetensors"], "no config.json"),
        ([], "no model.safetensors"),
    ],
)
def test_a_folder_without_readable_weights_is_refused(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError) as caught:
        parse_model(str(tmp_path))
    assert says in str(caught.value) and tmp_path.name in str(caught.value)


def test_pickles_beside_safetensors_are_no_obstacle() -> None:
    check_names(["config.json", "model.safetensors", "pytorch_model.bin"], "it")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "no-such-type", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "Python code"),
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
        ({"_attn_implementation": "someone/kernels"}, "_attn_implementation"),
        ({"model_type": None}, "model_type"),
    ],
)
def test_a_configuration_that_would_run_or_read_something_else(
    tmp_path: Path, config: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        parse_model(str(model_folder(tmp_path / "m", **config)))


def test_auto_map_of_a_type_transformers_knows_is_ignored(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", model_type="phi", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    assert parse_model(str(folder)).kind == "folder"


@pytest.mark.parametrize("content", ["", "[]", "{", "\ufeff{", "[" * 100_000])
def test_a_broken_configuration(tmp_path: Path, content: str) -> None:
    (model_folder(tmp_path / "m") / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        parse_model(str(tmp_path / "m"))


@pytest.mark.parametrize("shard", ["../other.safetensors", "/x/y.safetensors", "shard.bin", "a/b.safetensors", ""])
def test_an_index_names_only_safetensors_beside_it(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="does not list"):
        shard_names(index, "it")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(InputError, match=r"lacks one\.safetensors"):
        parse_model(str(folder))


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    for name, says in [("x.gguf", "no file"), ("folder/in/folder", "check the path"), ("gpt2", "org/name")]:
        with pytest.raises(InputError, match=says):
            parse_model(str(tmp_path / name) if "/" in name else name)
    for name in ("a" * 300, "~no-such-user/x", "x/" * 3 + "é" * 200):
        with pytest.raises(InputError, match="give demo"):
            parse_model(name)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="name the folder it is in"):
        parse_model(str(tmp_path / "notes.txt"))


def test_a_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^'org/name\.png' is a file but not a \.gguf file"):
        parse_model("org/name.png")
    assert parse_model("org/name.png", local_paths=False).kind == "hub"


def test_the_bundled_model_is_there_without_a_download(tmp_path: Path) -> None:
    files = resolve("demo", cache=tmp_path)
    assert (files.name, files.folder.parent.name) == ("demo", "demo")
    assert files.revision == files.sha256[:12]
