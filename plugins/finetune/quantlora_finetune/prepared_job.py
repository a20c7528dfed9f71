"""A run that is ready to train: everything loaded and checked, then trained, measured, written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console
from transformers import PreTrainedModel, set_seed

from quantlora import MemoryUse, memory_estimate, save_adapter
from quantlora.errors import FinetuneError
from quantlora_finetune.data.dataset import Dataset, collate_with, load_dataset
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.model.adaptation import Adaptation, choose_adaptation
from quantlora_finetune.model.base_model import BaseModel, find_base, load_model
from quantlora_finetune.model.weights_fingerprint import weights_fingerprint
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions, with_steps
from quantlora_finetune.reporting.card import model_card
from quantlora_finetune.reporting.evaluation import (
    Measurement,
    check_prompt,
    continuation,
    perplexity,
    prompt_of,
)
from quantlora_finetune.reporting.page import write_page
from quantlora_finetune.reporting.plot import plot_losses
from quantlora_finetune.reporting.report import Report, model_facts
from quantlora_finetune.run import processes
from quantlora_finetune.run.limits import require_disk
from quantlora_finetune.run.run_folder import PAGE, REPORT, RunFolder, write_json
from quantlora_finetune.show import Show
from quantlora_finetune.training.trainer import Training, train


@dataclass
class Job:
    """A run that is ready to train: everything is loaded and checked."""

    options: FinetuneOptions
    run: RunFolder
    base: BaseModel
    tokenizer: TrainingTokenizer
    data: Dataset
    model: PreTrainedModel
    memory: MemoryUse
    weights: str

    def __post_init__(self) -> None:
        self.collate = collate_with(self.base.padding)

    def measure(self) -> Measurement:
        middle = self.data.held_out[len(self.data.held_out) // 2]
        prompt = self.options.prompt or prompt_of(middle, self.tokenizer)
        answer = continuation(self.model, self.tokenizer, prompt, self.base.longest)
        size = self.options.batch_size
        held_out = perplexity(self.model, self.data.held_out, self.collate, size)
        return Measurement(held_out, prompt, answer)

    def before(self) -> Measurement:
        """The measurement before the first step; a resumed run has it on record."""
        if not self.run.record:
            before = self.measure()
            self._check_is_number(before.perplexity)
            self.run.record = {
                "data": self.data.fingerprint,
                "model": self.weights,
                "before": before.as_json(),
            }
        if processes.is_first():
            self.run.begin(options=self.options.as_json())
        return Measurement(**self.run.record["before"])

    def _check_is_number(self, perplexity: float) -> None:
        if math.isnan(perplexity):
            raise FinetuneError(
                f"{self.base.name}: its outputs are no numbers (NaN) before any training. Its "
                f"weights are damaged, or {self.model.dtype} is too narrow: try --dtype float32."
            )

    def train(self, console: Console) -> Training:
        return train(
            self.model, self.data, self.collate, self.tokenizer, self.options, self.run, console
        )

    def report(self, training: Training, before: Measurement, after: Measurement) -> Report:
        """What was trained, on what, with what, and what it brought."""
        model, data = model_facts(self.model), self.data.facts()
        return Report(
            self.base, model, data, self.options, training, before, after, predicted=self.memory
        )

    def leave(self, report: Report) -> None:
        """Write everything into the folder; the report last, for it says that all is there."""
        if not processes.is_first():
            return
        folder = self.run.path
        save_adapter(self.model, folder, card=model_card(report))
        plot_losses(folder / "loss.png", report)
        write_page(folder / PAGE, report)
        write_json(folder / REPORT, report.as_json())


def prepare(options: FinetuneOptions, run: RunFolder, show: Show) -> Job:
    """Load and check: what is quick to check, first."""
    show.beginning(options, run.steps_done)
    base = find_base(options)
    tokenizer = TrainingTokenizer(base.tokenizer)
    check_prompt(options.prompt, tokenizer, base.longest)
    data = load_dataset(options, tokenizer)
    run.check_same_data(data.fingerprint)
    options = with_steps(options, len(data.train), processes.count())
    adaptation = choose_adaptation(base, options)
    show.loading(base.name, data.facts())
    loaded = load_model(base, options.dtype)
    weights = weights_fingerprint(loaded)
    run.check_same_model(weights)
    model = _wrapped(loaded, base, adaptation, options)
    facts = model_facts(model)
    require_disk(run.path, facts.trained_parameters)
    show.model(facts)
    length = max(len(example.input_ids) for example in data.train)
    memory = memory_estimate(
        model,
        batch_size=options.batch_size,
        length=length,
        chunked_loss=options.trainer is not TrainerName.TRL,
    )
    show.prediction(memory)
    return Job(options, run, base, tokenizer, data, model, memory, weights)


def _wrapped(
    loaded: PreTrainedModel, base: BaseModel, adaptation: Adaptation, options: FinetuneOptions
) -> PreTrainedModel:
    """The model as it is trained, where it is trained."""
    set_seed(options.seed)  # A's first values
    model = adaptation.apply(loaded)
    if not base.is_quantized:
        model.to(processes.device())  # type: ignore[arg-type]
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    return model
