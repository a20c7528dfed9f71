"""A run that is ready to train: everything loaded and checked, then trained, measured, written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from rich.console import Console
from transformers import PreTrainedModel, set_seed

from quantlora import MemoryUse, memory_estimate, save_adapter
from quantlora.errors import FinetuneError
from quantlora_finetune.data.dataset import Dataset, collate_with, load_dataset
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.data.reading_progress import reading_progress
from quantlora_finetune.data.template import template_text
from quantlora_finetune.model.adaptation import (
    Adaptation,
    choose_adaptation,
    freeze_down_projections,
)
from quantlora_finetune.model.base_model import BaseModel, find_base, load_model
from quantlora_finetune.model.batch_size import (
    fitting_batch_size,
    longer_by,
    sequences_in_row,
)
from quantlora_finetune.model.packing_check import check_packing
from quantlora_finetune.model.weights_fingerprint import weights_fingerprint
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions, with_steps
from quantlora_finetune.options.training import AUTO
from quantlora_finetune.reporting.card import model_card
from quantlora_finetune.reporting.comparison_measure import mean_reward, preferred_share
from quantlora_finetune.reporting.evaluation import (
    Measurement,
    check_prompt,
    continuation,
    perplexity,
    prompt_of,
)
from quantlora_finetune.reporting.page import write_page
from quantlora_finetune.reporting.plot import plot_losses
from quantlora_finetune.reporting.report import Report, model_facts, short_name
from quantlora_finetune.run import processes
from quantlora_finetune.run.limits import require_disk
from quantlora_finetune.run.run_folder import PAGE, REPORT, TEMPLATE, RunFolder, write_json
from quantlora_finetune.show import Show
from quantlora_finetune.training.optimizers import optimizer_bytes_of
from quantlora_finetune.training.reward import reward_function
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
        rows = self.data.compared
        preferred = preferred_share(self.model, rows, self.collate)
        return Measurement(held_out, prompt, answer, preferred, self._reward())

    def _reward(self) -> float | None:
        if self.options.reward is None:
            return None
        reward, longest = reward_function(self.options.reward), self.options.completion_length
        return mean_reward(self.model, self.data.compared, self.tokenizer, reward, longest)

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
        if self.options.template is not None:
            (folder / TEMPLATE).write_text(template_text(self.options.template), "utf-8")
        plot_losses(folder / "loss.png", report)
        write_page(folder / PAGE, report)
        write_json(folder / REPORT, report.as_json())


def prepare(options: FinetuneOptions, run: RunFolder, show: Show) -> Job:
    """Load and check: what is quick to check, first."""
    show.beginning(options, run.steps_done)
    base = find_base(options)
    tokenizer = TrainingTokenizer(base.tokenizer, options)
    check_prompt(options.prompt, tokenizer, base.longest)
    show.template(tokenizer)
    with reading_progress(show.console, short_name(options.data or "the text"), tokenizer):
        data = load_dataset(options, tokenizer)
    run.check_same_data(data.fingerprint)
    adaptation = choose_adaptation(base, options)
    show.loading(base.name, data.facts())
    loaded = load_model(base, options.dtype)
    weights = weights_fingerprint(loaded)
    run.check_same_model(weights)
    model = _wrapped(loaded, base, adaptation, options)
    if options.packing:
        check_packing(model, base.padding)
    options = _settled(model, options, data, show)
    facts = model_facts(model)
    require_disk(run.path, facts.trained_parameters)
    show.model(facts)
    memory = _predicted(model, options, data)
    show.prediction(memory)
    return Job(options, run, base, tokenizer, data, model, memory, weights)


def _settled(
    model: PreTrainedModel, options: FinetuneOptions, data: Dataset, show: Show
) -> FinetuneOptions:
    """``options`` with the batch size and the steps as numbers."""
    if options.batch_size == AUTO:
        found = fitting_batch_size(model, options, data.longest, len(data.train))
        show.batch_size(found)
        options = dataclasses.replace(options, batch_size=found.batch_size)
    return with_steps(options, len(data.train), processes.count())


def _predicted(model: PreTrainedModel, options: FinetuneOptions, data: Dataset) -> MemoryUse:
    memory = memory_estimate(
        model,
        batch_size=options.batch_size * sequences_in_row(options),
        length=data.longest + longer_by(options),
        chunked_loss=options.trainer is TrainerName.TRANSFORMERS,
    )
    return dataclasses.replace(memory, optimizer=optimizer_bytes_of(model, options))


def _wrapped(
    loaded: PreTrainedModel, base: BaseModel, adaptation: Adaptation, options: FinetuneOptions
) -> PreTrainedModel:
    """The model as it is trained, where it is trained."""
    set_seed(options.seed)  # A's first values
    model = adaptation.apply(loaded)
    if options.lora_fa:
        freeze_down_projections(model)
    if not base.is_quantized:
        model.to(processes.device())  # type: ignore[arg-type]
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    return model
