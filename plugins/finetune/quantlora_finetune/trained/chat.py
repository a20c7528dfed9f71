"""A conversation with a trained model: what was said, and what a line that is typed does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import TextStreamer

from quantlora.errors import FinetuneError
from quantlora_finetune.data.messages import Message
from quantlora_finetune.trained.reply import Sampling, end_tokens, prompt_ids, replies, room_for
from quantlora_finetune.trained.trained_model import TrainedModel

#: Takes a piece of text as it comes.
Write = Callable[[str], None]


class Streamer(TextStreamer):
    """Writes each word as soon as it is whole, and keeps all of them."""

    def __init__(self, tokenizer: Any, write: Write, ends: Collection[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.text = write, ""
        self.ends, self.ended = ends, False

    def put(self, value: Any) -> None:
        """Take the prompt, then each token; ``ended`` says whether the last one is an end."""
        self.ended = value.flatten()[-1].item() in self.ends
        upstream: Any = super()  # untyped upstream
        upstream.put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.write(text)


@dataclass
class Chat:
    """A conversation; without a chat template each text is continued for itself.

    Args:
        system: the first message of every conversation.
        write: where replies are streamed to.
    """

    trained: TrainedModel
    sampling: Sampling
    system: str | None
    write: Write
    messages: list[Message] = field(default_factory=list)
    asked: str | None = None

    def __post_init__(self) -> None:
        if self.system and not self.trained.has_template:
            raise FinetuneError(
                f"{self.trained.base.name} has no chat template, so nowhere to put --system."
            )
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.asked = None

    def ask(self, text: str) -> str:
        """The reply to ``text``, streamed; interrupted by Ctrl-C, what there is of it."""
        reply = self._stream(text)
        self.asked = text
        if self.trained.has_template:
            self.messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": reply},
            ]
        return reply

    def ask_base(self) -> str:
        """What the bare base replies to the last message; the conversation does not hear of it."""
        if self.asked is None:
            raise FinetuneError("nothing has been asked yet: /base repeats your last message.")
        history = self.messages
        self.messages = history[:-2]
        try:
            return self._stream(self.asked, base=True)
        finally:
            self.messages = history

    def _stream(self, text: str, base: bool = False) -> str:
        user = {"role": "user", "content": text}
        prompt = [*self.messages, user] if self.trained.has_template else text
        ids = prompt_ids(self.trained, prompt)
        room = room_for(self.trained, ids, self.sampling.max_tokens)
        sampling = replace(self.sampling, max_tokens=room)
        ends = end_tokens(self.trained)
        streamer: Any = Streamer(self.trained.tokenizer.tokenizer, self.write, ends)
        with self.trained.without_adapter() if base else nullcontext():
            try:
                replies(self.trained, [ids], sampling, streamer=streamer)
                if room < self.sampling.max_tokens and not streamer.ended:
                    self._tell_of_the_cut()
            except KeyboardInterrupt:
                streamer.end()  # what is decoded already belongs to the reply
        return str(streamer.text)

    def _tell_of_the_cut(self) -> None:
        base = self.trained.base
        self.write(
            f"\n(cut off: {base.name} reads at most {base.longest} tokens; /reset begins anew)"
        )


@dataclass(frozen=True)
class LineCommand:
    """One of the lines with a slash; ``run`` says what to print."""

    help: str
    run: Callable[[Chat], str]


def _base(chat: Chat) -> str:
    chat.ask_base()
    return ""


def _reset(chat: Chat) -> str:
    chat.reset()
    return "The conversation begins anew."


def _help(chat: Chat) -> str:
    lines = [f"  {name:<8}{command.help}" for name, command in LINE_COMMANDS.items()]
    return "\n".join([*lines, f"  {'/quit':<8}end; so does Ctrl-D"])


LINE_COMMANDS = {
    "/base": LineCommand("what the model says to your last message without its adapter", _base),
    "/reset": LineCommand("forget the conversation", _reset),
    "/help": LineCommand("this list", _help),
}
QUIT = ("/quit", "/exit")


def run_line(chat: Chat, line: str) -> str:
    """Do what ``line`` says; what is to be printed after it.

    Raises:
        FinetuneError: there is no such command, or no room for a reply.
    """
    text = inspect.cleandoc(line)
    if not text.isascii() and text != text.encode(errors="ignore").decode():
        raise FinetuneError("what was typed is no UTF-8 text: check the terminal's encoding.")
    if not text.startswith("/"):
        chat.ask(text)
        return ""
    if text.split()[0] in (*LINE_COMMANDS, *QUIT) and text not in LINE_COMMANDS:
        raise FinetuneError(f"{text.split()[0]} takes nothing after it.")
    if text not in LINE_COMMANDS:
        known = ", ".join([*LINE_COMMANDS, QUIT[0]])
        raise FinetuneError(f"there is no command {text.split()[0]}: {known}.")
    return LINE_COMMANDS[text].run(chat)
