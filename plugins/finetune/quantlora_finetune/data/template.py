"""``--template``: how conversations are written for a model, by name or from a Jinja file.

The names are those of the models whose published template each repeats, without the default system
message that some of them add.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlora.errors import ConfigError
from quantlora.suggestions import near
from quantlora_finetune.data.records import Chat, Instruction, Record

if TYPE_CHECKING:
    from quantlora_finetune.options.data import DataOptions

_FOLDER = Path(__file__).with_name("templates")
TEMPLATES = tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))
#: What a template has that no file's name has.
_MARKUP = re.compile(r"\{[{%]")
#: How turns are marked: written by a template, each is one token of a model trained with it.
_MARKS = re.compile(r"<\|?[a-z_]+\|?>|\[/?INST\]")
_SAMPLE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def template_text(given: str) -> str:
    """The template that ``--template`` names; a template's text is taken as it stands.

    Raises:
        ConfigError: there is no such name and no such file, or the file holds no template.
    """
    if _MARKUP.search(given):
        return given
    if given in TEMPLATES:
        return (_FOLDER / f"{given}.jinja").read_text("utf-8")
    file = Path(given).expanduser()
    if not file.is_file():
        close = near(given, TEMPLATES)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"--template {given}: there is no such file (looked in {Path.cwd()}), and the names "
            f"are {', '.join(TEMPLATES)}.{hint}"
        )
    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--template {file} cannot be read: {error}.") from error
    if not _MARKUP.search(text):
        raise ConfigError(f"--template {file} holds no Jinja template: there is no {{{{ in it.")
    return text


def check_template(tokenizer: Any, name: str) -> None:
    """Raise `ConfigError` where the tokenizer's template cannot write a question and its answer."""
    try:
        text = tokenizer.apply_chat_template(list(_SAMPLE), tokenize=False)
    except Exception as error:  # a template is a program
        raise ConfigError(
            f"--template {name:.60} cannot write a question and its answer: "
            f"{type(error).__name__}: {error}."
        ) from error
    if "b" not in text:
        raise ConfigError(f"--template {name:.60} leaves out the assistant's answers.")


def split_marks(tokenizer: Any) -> list[str]:
    """Marks of turns that the template writes and ``tokenizer`` has no token for."""
    text = tokenizer.apply_chat_template(list(_SAMPLE), tokenize=False)
    vocabulary = tokenizer.get_vocab()
    return [mark for mark in dict.fromkeys(_MARKS.findall(text)) if mark not in vocabulary]


def check_conversations(records: Sequence[Record], options: DataOptions) -> None:
    """Raise `ConfigError` where an option is for conversations and the data has none."""
    if any(isinstance(record, Chat | Instruction) for record in records):
        return
    for name, value in (("--template", options.template), ("--system", options.system)):
        if value is not None:
            raise ConfigError(
                f"{name} is for conversations, and the data has none: its rows are texts, or "
                f"prompts that are written already. Leave it out, or give messages."
            )
