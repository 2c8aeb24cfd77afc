"""A process of its own in which stock transformers loads an export; nothing of Headscope's model code runs there.

It is started before the folder is written, and waits: its end of a pipe closes when the exporting process dies, however
that happens, and then it removes what was half written. So even a `kill -9` leaves nothing behind.

    python -m core.export.reload SCRATCH DEVICE THREADS

loads SCRATCH/model, runs SCRATCH/probe.safetensors through it and writes SCRATCH/answer.safetensors and answer.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import disk
from core.errors import AnalysisError
from core.settings import Progress

if TYPE_CHECKING:
    import torch

MODEL, PROBE, TENSORS, ANSWER = "model", "probe.safetensors", "answer.safetensors", "answer.json"
NEW_TOKENS = 4
ROOT = Path(__file__).resolve().parent.parent.parent


class Reloader:
    """The other process, from the exporting side; used as a context manager around everything that is written."""

    def __init__(self, scratch: Path, device: str, threads: int) -> None:
        self.scratch = scratch
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "critical",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "core.export.reload", str(scratch), device, str(threads)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the exporting process alone, which then closes the pipe
        )

    def __enter__(self) -> Reloader:
        return self

    def __exit__(self, *_: object) -> None:
        """Called when the folder stands in its place, or was given up."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process.kill()  # it has nothing left to do: this process removes what there is
        self.process.wait()

    def answer(self, progress: Progress) -> dict[str, Any]:
        """What the other process found in the folder, which is complete now.

        Raises:
            AnalysisError: stock transformers cannot load it or run it; the message says why. OSError: the disk is full.
        """
        with contextlib.suppress(OSError):  # it has died: told below
            if self.process.stdin is not None:
                self.process.stdin.write(b"go\n")
                self.process.stdin.flush()
        while not (self.scratch / ANSWER).is_file():
            progress("Reloading the checkpoint in another process", None)
            if (code := self.process.poll()) is not None:
                if code in disk.FULL:
                    raise OSError(code, os.strerror(code))
                raise AnalysisError(
                    f"The process that reloads the export ended early (code {code}), perhaps for want "
                    "of memory, and the export was given up: close other programs and try again."
                )
            time.sleep(0.05)
        found: dict[str, Any] = json.loads((self.scratch / ANSWER).read_text("utf-8"))
        if "error" in found:
            raise AnalysisError(
                f"Stock transformers cannot use the exported checkpoint ({found['error']}), so it was given up: this "
                "model cannot be exported."
            )
        return found


def main(scratch: Path, device: str, threads: int) -> None:
    try:
        import torch

        torch.set_num_threads(threads)
        import transformers  # noqa: F401  (while the other process writes)

        if sys.stdin.readline():
            write_answer(scratch, device)
        sys.stdin.read()
    except Exception as error:
        if (number := disk.of_the_system(error).errno) in disk.FULL:
            sys.exit(number)
        raise
    finally:  # the exporting process is gone
        shutil.rmtree(scratch, ignore_errors=True)


def write_answer(scratch: Path, device: str) -> None:
    """Reload, run and report; an error is reported too, but for a full disk, on which no report can be relied."""
    try:
        found = run_checkpoint(scratch, device)
    except Exception as error:
        if disk.of_the_system(error).errno in disk.FULL:
            raise
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    writing = scratch / f"{ANSWER}.writing"
    writing.write_text(json.dumps(found), "utf-8")
    writing.replace(scratch / ANSWER)


def run_checkpoint(scratch: Path, device: str) -> dict[str, Any]:
    """Logits on the probe text, and a few more tokens, from `AutoModelForCausalLM.from_pretrained(folder)`."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = scratch / MODEL
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(folder, dtype="auto", output_loading_info=True, local_files_only=True)
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise ValueError(f"the files lack {wrong[0]}")
    model = model.eval().to(device)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = load_file(scratch / PROBE)["ids"].to(device)
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    received: list[torch.Tensor] = []

    def receive(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.append((args[0] if args else kwargs["input"]).detach())

    hook = head.register_forward_pre_hook(receive, with_kwargs=True)
    with torch.no_grad():
        own = model(ids).logits
        hook.remove()
        tensors = {"logits": own[0].float(), "hidden": received[0][0].float()}
        if head.weight.dtype != torch.float32:  # once more with the head in fp32: only the body rounds then
            bias = None if head.bias is None else head.bias.float()
            weight = head.weight.float()
            plain = head.forward
            head.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), weight, bias)
            tensors["logits_fp32"] = model(ids).logits[0].float()
            head.forward = plain
        more = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, scratch / TENSORS)
    return {
        "tied": inputs.weight.data_ptr() == head.weight.data_ptr(),
        "input_embedding_sha256": tensor_sha256(inputs.weight),
        "generated": int(more.shape[1] - ids.shape[1]),
        "vocabulary": len(tokenizer),
    }


def tensor_sha256(tensor: torch.Tensor) -> str:
    import torch

    raw = tensor.detach().contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.sha256(raw.reshape(-1).data).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
