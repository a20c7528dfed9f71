"""From records to token sequences of a bounded length, each beginning with BOS.

Without BOS some models (Gemma among them) give meaningless likelihoods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.messages import call_names
from quantlora_finetune.data.records import Chat, Exchange, Instruction, Record, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Not counted in the loss (torch's ``ignore_index``).
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids, of which the first ``given`` are not learned; whether the end was cut off."""

    input_ids: list[int]
    given: int
    is_cut: bool = False

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.given + self.input_ids[self.given :]

    @property
    def learned(self) -> int:
        """Tokens that are predicted."""
        return len(self.input_ids) - self.given


class TrainingTokenizer:
    """A tokenizer as training needs it: without special tokens of its own choice."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.bos: list[int] = _ids(tokenizer.bos_token_id)
        self.eos: list[int] = _ids(tokenizer.eos_token_id)

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def starting(self, text: str) -> list[int]:
        """The ids of ``text`` with BOS before them, once: chat templates may bring their own."""
        ids = self.encode(text)
        return ids if ids[: len(self.bos)] == self.bos else [*self.bos, *ids]

    def ending(self, ids: list[int], room: int) -> list[int]:
        """``ids``, or BOS and the last of them where there is no room for all."""
        start = self.bos if ids[: len(self.bos)] == self.bos else []
        return ids if len(ids) <= room else [*start, *ids[len(ids) - room + len(start) :]]


def examples_of(
    records: Sequence[Record], tokenizer: TrainingTokenizer, length: int
) -> list[Example]:
    """The sequences that there is something to learn in."""
    return [
        sequence for sequence in sequences_of(records, tokenizer, length) if sequence.learned > 0
    ]


def sequences_of(
    records: Sequence[Record], tokenizer: TrainingTokenizer, length: int
) -> list[Example]:
    """Windows over all texts, and one sequence for each answer, none longer than ``length``."""
    return [*_windows(records, tokenizer, length), *_answers(records, tokenizer, length)]


def _windows(
    records: Sequence[Record], tokenizer: TrainingTokenizer, length: int
) -> Iterator[Example]:
    """The texts in a row, EOS between them, cut into windows that each start with BOS."""
    texts = [record.text for record in records if isinstance(record, Text)]
    stream = [token for text in texts for token in (*tokenizer.encode(text), *tokenizer.eos)]
    stream = stream[: len(stream) - len(tokenizer.eos)]
    step = length - len(tokenizer.bos)
    for start in range(0, len(stream) - step + 1, step):
        window = [*tokenizer.bos, *stream[start : start + step]]
        yield Example(window, given=1)


def _answers(
    records: Sequence[Record], tokenizer: TrainingTokenizer, length: int
) -> Iterator[Example]:
    for record in records:
        for prompt, completion, end in _exchanges(record, tokenizer):
            given = tokenizer.starting(prompt) or tokenizer.bos
            whole = [*given, *tokenizer.encode(completion), *end]
            yield Example(whole[:length], max(1, len(given)), len(whole) > length)


def _exchanges(
    record: Record, tokenizer: TrainingTokenizer
) -> Iterator[tuple[str, str, list[int]]]:
    """(prompt, completion, ids after it): a template ends its turns itself."""
    if isinstance(record, Exchange):
        yield record.prompt, record.completion, tokenizer.eos
    elif isinstance(record, Instruction):
        yield _instruction(record, tokenizer)
    elif isinstance(record, Chat):
        for i, message in enumerate(record.messages):
            if i >= record.start and message["role"] == "assistant":
                yield *_templated(record.messages[: i + 1], tokenizer, record.tools), []


def _instruction(record: Instruction, tokenizer: TrainingTokenizer) -> tuple[str, str, list[int]]:
    if not tokenizer.has_template:
        return record.prompt, record.answer, tokenizer.eos
    user = {"role": "user", "content": record.asked}
    answer = {"role": "assistant", "content": record.answer}
    return *_templated([user, answer], tokenizer), []


def _templated(
    messages: Sequence[Any], tokenizer: TrainingTokenizer, tools: Sequence[Any] = ()
) -> tuple[str, str]:
    """The conversation before the last turn, and that turn, as the model's template writes them."""
    if not tokenizer.has_template:
        raise FinetuneError(
            'the data has "messages", but this model\'s tokenizer has no chat template: use an '
            'instruction-tuned model, or give "prompt" and "completion".'
        )
    write = partial(
        tokenizer.tokenizer.apply_chat_template, tools=list(tools) or None, tokenize=False
    )
    try:
        before = write(list(messages[:-1]), add_generation_prompt=True)
        after = write(list(messages))
    except Exception as error:  # a template is a program, and says what it does not take
        roles = [message["role"] for message in messages]
        raise FinetuneError(
            f"the chat template of this model's tokenizer cannot write a conversation of the "
            f"roles {', '.join(roles)}: {type(error).__name__}: {error}. "
            f"Change the data, or use a model whose template has them."
        ) from error
    shared = _shared_start(before, after)
    if lost := [name for name in call_names(messages[-1]) if name not in after[shared:]]:
        raise FinetuneError(
            f"the chat template of this model's tokenizer leaves out tool calls ({lost[0]} first): "
            f"use a model whose template writes them."
        )
    return after[:shared], after[shared:]


def _shared_start(first: str, other: str) -> int:
    pairs = enumerate(zip(first, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(other)))


def _ids(token: int | list[int] | None) -> list[int]:
    return [] if token is None else [token] if isinstance(token, int) else token[:1]
