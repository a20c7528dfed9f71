"""The command line in this process, for children that are killed."""

from __future__ import annotations

from pathlib import Path

from tests.tools.reliability.subjects import tiny_llama

SENTENCE = "the quick brown fox jumps over the lazy dog. "

_QUICK = [
    *("--length", "16", "--steps", "6", "--batch-size", "2", "--lr", "0.01", "--dropout", "0.1"),
    *("--save-every", "2", "--eval-examples", "4", "--dtype", "float32", "--backend", "float"),
]


class RefusedError(Exception):
    """A command has ended with a message of ours and exit code 1."""


def invoke(*arguments: str) -> None:
    """Run ``quantlora *arguments``.

    Raises:
        RefusedError: it said what is wrong.
        Exception: whatever else ended it, as it came.
    """
    from typer.testing import CliRunner

    from quantlora.cli import app

    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, SystemExit):
        raise RefusedError(done.output[-500:])
    if done.exception is not None:
        raise done.exception


def finetune_arguments(place: Path) -> list[str]:
    """A run of a second; it wants ``--output``."""
    model, text = tiny_llama(place / "model"), place / "text.txt"
    text.write_text(SENTENCE * 20)
    return ["finetune", "--model", str(model), "--data", str(text), *_QUICK]


def loftq_arguments(place: Path) -> list[str]:
    """A run of a second; it wants ``--save-dir``."""
    model = tiny_llama(place / "model")
    return ["loftq", "--model", str(model), "--bits", "2", "--iter", "1", "--rank", "4"]


def import_finetune() -> None:
    """Import here what every child would import anew."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import quantlora_finetune.job  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp  # noqa: F401
    from transformers import Trainer, TrainingArguments  # noqa: F401


def import_loftq() -> None:
    """As `import_finetune`."""
    from quantlora.cli.plugin_commands import plugin_commands

    assert "loftq" in plugin_commands(), "the plugin with the command loftq is not installed"
