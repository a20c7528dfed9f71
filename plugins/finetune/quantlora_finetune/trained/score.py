"""How well a trained model does on data: perplexity, and exact answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quantlora.errors import FinetuneError
from quantlora_finetune.data.dataset import collate_with, load_dataset, spread
from quantlora_finetune.data.examples import Example, examples_of
from quantlora_finetune.data.forms import column_map
from quantlora_finetune.data.sources import read_records
from quantlora_finetune.model.base_model import check_length
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.evaluation import perplexity
from quantlora_finetune.trained.reply import Sampling, replies
from quantlora_finetune.trained.trained_model import TrainedModel

#: Room for a reply that goes on where the wanted answer ends.
_BEYOND = 8
#: Told the number of examples that are through.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Score:
    """``exact`` of ``answers`` were generated as wanted; no answers where the data is texts."""

    perplexity: float
    exact: int
    answers: int


@dataclass(frozen=True)
class EvalData:
    """What is measured on, under the ``name`` that people know it by."""

    name: str
    examples: list[Example]


def eval_data(
    trained: TrainedModel,
    data: str | None,
    split: str,
    length: int | None,
    count: int,
    map: str | None = None,
) -> EvalData:
    """At most ``count`` examples of ``data``, evenly spaced; None: those that the run held out.

    Raises:
        FinetuneError: the run is not known, the data gives no example, or ``length`` is more
            than the model reads.
    """
    run = trained.folder.options
    if data is None and run is None:
        raise FinetuneError(f"{trained.folder.path} has no run.json: say what with, by --data.")
    if data is None:
        assert run is not None
        found = load_dataset(run, trained.tokenizer)
        return EvalData(f"{found.name}, the part held out", found.held_out)
    wanted = length or (run or FinetuneOptions()).length
    check_length(trained.base, wanted)
    records = read_records(data, split, column_map(map))
    examples = examples_of(records, trained.tokenizer, wanted)
    if not examples:
        raise FinetuneError(f"{data} gives no example of {wanted} tokens: use a smaller --length.")
    return EvalData(data, spread(examples, count))


def score(
    trained: TrainedModel, examples: Sequence[Example], batch_size: int, progress: Progress
) -> Score:
    """Measure the model as it is; replies are generated greedily."""
    collate = collate_with(trained.base.padding)
    measured = perplexity(trained.model, examples, collate, batch_size)
    answers = with_answers(examples)
    exact = 0
    for batch in _batches(answers, batch_size):
        exact += sum(map(_same, _replies(trained, batch), (_wanted(trained, e) for e in batch)))
        progress(len(batch))
    return Score(measured, exact, len(answers))


def with_answers(examples: Sequence[Example]) -> list[Example]:
    """Those with a prompt and a whole answer to it, whose reply is compared."""
    return [example for example in examples if example.given > 1 and not example.is_cut]


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _replies(trained: TrainedModel, batch: Sequence[Example]) -> list[str]:
    prompts = [example.input_ids[: example.given] for example in batch]
    room = max(example.learned for example in batch) + _BEYOND
    if trained.base.longest is not None:
        room = min(room, trained.base.longest - max(map(len, prompts)))
    return replies(trained, prompts, Sampling(max_tokens=room))


def _wanted(trained: TrainedModel, example: Example) -> str:
    answer = example.input_ids[example.given :]
    text: str = trained.tokenizer.tokenizer.decode(answer, skip_special_tokens=True)
    return text


def _same(found: str, wanted: str) -> bool:
    return found.strip() == wanted.strip()
