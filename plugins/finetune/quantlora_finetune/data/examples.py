"""From records to token sequences of a bounded length, each beginning with BOS.

Without BOS some models (Gemma among them) give meaningless likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.messages import call_names, with_system
from quantlora_finetune.data.records import (
    Chat,
    Exchange,
    Instruction,
    Labelled,
    Preference,
    Record,
    Text,
)
from quantlora_finetune.data.template import check_template, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from quantlora_finetune.options.data import DataOptions

#: Not counted in the loss (torch's ``ignore_index``).
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids, the first ``given`` of them the prompt; whether the end was cut off.

    Only what follows the prompt is learned, or all but the first token, which nothing predicts.
    """

    input_ids: list[int]
    given: int
    is_cut: bool = False
    learns_prompt: bool = False

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.learned_from + self.input_ids[self.learned_from :]

    @property
    def learned_from(self) -> int:
        """The first position that is learned."""
        return 1 if self.learns_prompt else self.given

    @property
    def learned(self) -> int:
        """Tokens that are predicted."""
        return max(0, len(self.input_ids) - self.learned_from)


class TrainingTokenizer:
    """A tokenizer as training needs it: without special tokens of its own choice.

    Args:
        options: how examples are written: ``template``, ``system``, ``train_on_prompt``.

    Raises:
        ConfigError: the template cannot be read, or cannot write a question and its answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: DataOptions | None = None
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.system = options.system if options else None
        self.learns_prompts = bool(options and options.train_on_prompt)
        self.template = options.template if options else None
        self.progress: Callable[[int], None] | None = None  # told tokens as they are found
        if self.template is not None:
            self.tokenizer.chat_template = template_text(self.template)
            check_template(tokenizer, self.template)
        self.bos: list[int] = _ids(tokenizer.bos_token_id)
        self.eos: list[int] = _ids(tokenizer.eos_token_id)

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def ends(self, text: str) -> list[int]:
        """EOS, where ``text`` was written by a template of another model and lacks it."""
        mark = getattr(self.tokenizer, "eos_token", None)
        return [] if self.template is None or (mark and mark in text) else self.eos

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if self.progress is not None:
            self.progress(len(ids))
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
            cut = len(whole) > length
            yield Example(whole[:length], max(1, len(given)), cut, tokenizer.learns_prompts)


def _exchanges(
    record: Record, tokenizer: TrainingTokenizer
) -> Iterator[tuple[str, str, list[int]]]:
    """(prompt, completion, ids after it): a template ends its turns itself."""
    if isinstance(record, Exchange):
        yield record.prompt, record.completion, tokenizer.eos
    elif isinstance(record, Instruction):
        yield _instruction(record, tokenizer)
    elif isinstance(record, Chat):
        yield from _turns(record, tokenizer)
    elif isinstance(record, Preference):
        yield from _exchanges(record.chosen, tokenizer)
        yield from _exchanges(record.rejected, tokenizer)
    elif isinstance(record, Labelled):
        yield from _exchanges(record.answer, tokenizer)


def _turns(record: Chat, tokenizer: TrainingTokenizer) -> Iterator[tuple[str, str, list[int]]]:
    """One for each answer, or the last alone where what comes before it is learned with it."""
    learned = [
        i for i, message in enumerate(record.messages)
        if i >= record.start and message["role"] == "assistant"
    ]  # fmt: skip
    for i in learned[-1:] if tokenizer.learns_prompts else learned:
        messages = with_system(record.messages[: i + 1], tokenizer.system)
        prompt, answer = _templated(messages, tokenizer, record.tools)
        yield prompt, answer, tokenizer.ends(answer)


def _instruction(record: Instruction, tokenizer: TrainingTokenizer) -> tuple[str, str, list[int]]:
    if not tokenizer.has_template:
        before = f"{tokenizer.system}\n\n" if tokenizer.system else ""
        return before + record.prompt, record.answer, tokenizer.eos
    user = {"role": "user", "content": record.asked}
    answer = {"role": "assistant", "content": record.answer}
    messages = with_system([user, answer], tokenizer.system)
    prompt, completion = _templated(messages, tokenizer)
    return prompt, completion, tokenizer.ends(completion)


def _templated(
    messages: Sequence[Any], tokenizer: TrainingTokenizer, tools: Sequence[Any] = ()
) -> tuple[str, str]:
    """The conversation before the last turn, and that turn, as the model's template writes them."""
    if not tokenizer.has_template:
        raise _no_template()
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


def prompt_ids(prompt: str | Sequence[Any], tokenizer: TrainingTokenizer) -> list[int]:
    """The ids of a prompt that is to be answered: a text, or a conversation."""
    if isinstance(prompt, str):
        return tokenizer.starting(prompt)
    if not tokenizer.has_template:
        raise _no_template()
    write = tokenizer.tokenizer.apply_chat_template
    return tokenizer.starting(write(list(prompt), add_generation_prompt=True, tokenize=False))


def _no_template() -> FinetuneError:
    return FinetuneError(
        'the data has "messages", but this model\'s tokenizer has no chat template: name one '
        'with --template, use an instruction-tuned model, or give "prompt" and "completion".'
    )


def _shared_start(first: str, other: str) -> int:
    pairs = enumerate(zip(first, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(other)))


def _ids(token: int | list[int] | None) -> list[int]:
    return [] if token is None else [token] if isinstance(token, int) else token[:1]
