"""``README.md`` beside an adapter: the card that the hub shows.

One that is as it was written here, by its digest in ``quantlora.json``, is written anew. Any other
is somebody's text: what the hub needs and it lacks is added to its metadata. Two lines of it may be
ours, those on the adapter and the version: they follow the adapter that is saved, and so does the
base in its metadata where it is the one that our line names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlora.checkpoint.card_metadata import with_metadata
from quantlora.checkpoint.side_file import card_digest
from quantlora.config.lora_config import LoraConfig

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD, NEW_CARD = "README.md", "README.new.md"
#: Where ``quantlora.json`` has the digest of each.
_FIELDS = {CARD: "card", NEW_CARD: "new_card"}

_MADE_WITH = "made with [quantlora](https://pypi.org/project/quantlora)"
_ADAPTER = "A LoRA adapter{of}: rank {r}, alpha {alpha:g}, " + _MADE_WITH
_VERSION = "- quantlora {version}"

_TEXT = f"""
# {{title}}

{_ADAPTER}
in PEFT's format.

## Use

```python
import quantlora

model = quantlora.load_adapter(model, "this folder or its id on the hub")
```

`PeftModel.from_pretrained(model, ...)` reads it too. `model` is the base that it was trained on.

### Framework versions

{_VERSION}
"""

#: The same lines in a card that was written here, whatever adapter it was for.
_RANK = r"rank \d+, alpha \S+, "
_OF = r"(?: for \[(?P<base>[^\]]+)\]\(.*\))?"
_ADAPTER_LINE = re.compile(rf"^A LoRA adapter{_OF}.*: {_RANK}{re.escape(_MADE_WITH)}(?=\r?$)", re.M)
_VERSION_LINE = re.compile(r"^- quantlora \d\S*(?=\r?$)", re.M)


@dataclass(frozen=True)
class CardFiles:
    """What is written for a card: texts by the name of their file.

    Args:
        digests: of those that were written here as a whole, by their field in ``quantlora.json``.
        obsolete: files of an earlier save that nobody has edited, and that this one replaces.
    """

    texts: dict[str, str]
    digests: dict[str, str]
    obsolete: tuple[str, ...] = ()


def card_files(
    folder: Path, config: LoraConfig, base: str | None, card: ModelCard | None = None
) -> CardFiles:
    """The card for the adapter in ``folder``.

    Args:
        base: what the base was loaded from; only an id of the hub is written, for a path says
            nothing to others, and the hub refuses it.
        card: the text to write, if not the usual one; to `NEW_CARD` where somebody has edited the
            card that is there.
    """
    base = base if base and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) else None
    base = None if base and Path(base).exists() else base
    values = _values(config, base)
    text = _TEXT.format(title=folder.name, **values) if card is None else str(card)
    text = with_metadata(text, base)
    if _is_ours(folder, CARD):
        return CardFiles({CARD: text}, {_FIELDS[CARD]: digest(text)}, _stale(folder))
    theirs = _somebodys(folder / CARD, base, values)
    if not card:
        return CardFiles(theirs, {}, _stale(folder))
    return CardFiles(theirs | {NEW_CARD: text}, {_FIELDS[NEW_CARD]: digest(text)})


def _stale(folder: Path) -> tuple[str, ...]:
    """The card beside somebody's that a former save has left, unless it was edited."""
    there = os.path.lexists(folder / NEW_CARD)
    return (NEW_CARD,) if there and _is_ours(folder, NEW_CARD) else ()


def _is_ours(folder: Path, name: str) -> bool:
    """Whether there is no file ``name``, or one that is as it was written here."""
    file = folder / name
    if not os.path.lexists(file):
        return True
    try:
        return digest(file.read_text("utf-8")) == card_digest(folder, _FIELDS[name])
    except (OSError, ValueError):
        return False


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _somebodys(file: Path, base: str | None, values: dict[str, Any]) -> dict[str, str]:
    """The card that is there, with what it lacks; nothing where it cannot be read."""
    try:
        old = file.read_bytes().decode("utf-8")  # line ends stay
        line = _ADAPTER_LINE.search(old)
        return {CARD: with_metadata(_renewed(old, values), base, line and line["base"])}
    except (OSError, ValueError, _yaml_error()):
        return {}


def _values(config: LoraConfig, base: str | None) -> dict[str, Any]:
    return {
        "of": f" for [{base}](https://huggingface.co/{base})" if base else "",
        "r": config.r,
        "alpha": config.lora_alpha,
        "version": importlib.metadata.version("quantlora"),
    }


def _renewed(text: str, values: dict[str, Any]) -> str:
    """``text`` with our own lines, where it has them, as they are for the adapter saved now."""
    if not _ADAPTER_LINE.search(text):
        return text
    text = _ADAPTER_LINE.sub(lambda _: _ADAPTER.format(**values), text)
    return _VERSION_LINE.sub(lambda _: _VERSION.format(**values), text)


def _yaml_error() -> type[Exception]:
    import yaml  # type: ignore[import-untyped, unused-ignore]

    error: type[Exception] = yaml.YAMLError
    return error
