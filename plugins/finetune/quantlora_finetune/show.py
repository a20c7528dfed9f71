"""What a run says on the terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantlora import MemoryUse, format_size
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.data.template import split_marks
from quantlora_finetune.model import demo_model
from quantlora_finetune.model.batch_size import FoundBatchSize
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.evaluation import Measurement
from quantlora_finetune.reporting.report import ModelFacts, Report

#: Where `save_adapter` puts the card of a run whose README.md somebody has edited.
_NEW_CARD = "README.new.md"
_INDENT = "    "
#: Files that are named before the rest is counted.
_NAMED = 5


class Show:
    """Plain sentences; model output is never taken for rich's markup."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def beginning(self, options: FinetuneOptions, steps_done: int) -> None:
        if options.model is None:
            self._say(f"{demo_model.NAME} is used under the Gemma terms: {demo_model.TERMS}", "dim")
            if not demo_model.is_cached():
                self._say("Converting it, once; this takes about a minute.")
        if options.resume:
            self._say(f"Going on after step {steps_done} of {options.steps}.")

    def template(self, tokenizer: TrainingTokenizer) -> None:
        """Say where the tokenizer does not know how the template marks turns."""
        if tokenizer.template is None:
            return
        if marks := split_marks(tokenizer.tokenizer):
            self._say(
                f"The tokenizer has no token for {', '.join(marks)} of the template: each is "
                f"written with several, which the model learns as any text.",
                "yellow",
            )

    def loading(self, name: str, data: dict[str, Any]) -> None:
        self._say(
            f"Data: {data['name']}: {data['train_examples']} examples to train on"
            f"{_in_rows(data)}, {data['measured_examples']} others to measure on, from "
            f"{data['held_out']}."
        )
        if data["cut_examples"] or data["left_out_examples"]:
            self._say(
                f"Longer than --length: {data['cut_examples']} examples are cut off at their end, "
                f"{data['left_out_examples']} whose prompt alone fills it are left out.",
                "yellow",
            )
        if data["empty_rows"]:
            self._say(f"Rows without anything to learn, left out: {data['empty_rows']}.", "yellow")
        if unread := data["unread_files"]:
            more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
            names = ", ".join(unread[:_NAMED])
            self._say(f"Files beside the data, not read: {names}{more}.", "yellow")
        self._say(f"Loading {name}.")

    def model(self, facts: ModelFacts) -> None:
        formats = ", ".join(f"{count} layers in {name}" for name, count in facts.formats.items())
        self._say(
            f"Model: {formats}; computes in {facts.compute_dtype} on {facts.device}; "
            f"{facts.trained_parameters:,} parameters are trained."
        )

    def measurement(self, when: str, found: Measurement) -> None:
        self._say(f"Held-out perplexity {when} training: {found.perplexity:.2f}", "bold")
        if found.preferred is not None:
            self._say(
                f"Chosen answers that are the likelier ones, {when}: {found.preferred:.0%}", "bold"
            )
        if found.reward is not None:
            self._say(f"Mean reward of the likeliest answers, {when}: {found.reward:.3f}", "bold")
        text = Text.assemble(
            _INDENT, (_below(found.prompt), "dim"), _below(found.continuation.rstrip())
        )
        self.console.print(text, soft_wrap=True)

    def prediction(self, memory: MemoryUse) -> None:
        parts = ", ".join(f"{name} {format_size(count)}" for name, count in memory.rows()[:-1])
        self._say(f"Memory, predicted: {format_size(memory.total)} ({parts}).")

    def batch_size(self, found: FoundBatchSize) -> None:
        self._say(
            f"Batch size: {found.batch_size}, by the memory prediction: "
            f"{format_size(found.needed)} of {format_size(found.free)} that are free."
        )

    def memory(self, predicted: MemoryUse, measured: MemoryUse | None) -> None:
        """Both, component by component; nothing where no step was made to measure."""
        if measured is None:
            return
        table = Table(title="Memory", title_justify="left", title_style="")
        table.add_column("component")
        table.add_column("predicted", justify="right")
        table.add_column("measured", justify="right")
        for (name, first), (_, then) in zip(predicted.rows(), measured.rows(), strict=True):
            table.add_row(
                name, format_size(first), format_size(then), style="bold" if name == "total" else ""
            )
        self.console.print(table)

    def result(self, folder: Path, report: Report) -> None:
        training = report.training
        self._say(
            f"Perplexity {report.before.perplexity:.2f} -> {report.after.perplexity:.2f} "
            f"({-report.fall_percent:+.1f} %), {training.seconds:.0f} s of training at "
            f"{training.tokens_per_second:.0f} tokens/s.",
            "bold green" if report.fall_percent > 0 else "bold yellow",
        )
        self._say(f"In {folder}: the adapter, report.html, report.json, loss.png and README.md.")
        system = report.options.system
        more = ["--system", system] if system else []
        self._say(f"Next: {shlex.join(['quantlora', 'chat', str(folder), *more])}")
        if (folder / _NEW_CARD).exists():
            self._say(f"README.md was edited and stays; {_NEW_CARD} is the card of this run.")

    def finished_already(self, folder: Path, steps: int) -> None:
        self._say(f"{folder}: this run has its {steps} steps. Train on with --resume --steps N.")

    def interrupted(self, folder: Path, steps_done: int, has_begun: bool) -> None:
        if not has_begun:
            self._say("Interrupted before the training began; nothing was left behind.")
            return
        self._say(f"Interrupted. {folder} holds the first {steps_done} steps. Continue with:")
        self._say(f"  {go_on(folder)}", "bold")

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


def _in_rows(data: dict[str, Any]) -> str:
    packed = data["train_rows"] != data["train_examples"]
    return f" in {data['train_rows']} rows" if packed else ""


def _below(text: str) -> str:
    return text.replace("\n", f"\n{_INDENT}")


def go_on(folder: Path) -> str:
    """The command that goes on with the run in ``folder``."""
    return shlex.join(["quantlora", "finetune", "--resume", "--output", str(folder)])
