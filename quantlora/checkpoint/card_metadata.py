"""The metadata of a model card: what they lack is put in, and every other character stays.

Comments, quotes, numbers as they are written and line ends are lost when YAML is read and written
again, so the places are found by the parser's marks and the text is changed there alone.
"""

from __future__ import annotations

import re
from typing import Any

#: A mark of the encoding, and the block between two lines of dashes, at the start of the file.
_BLOCK = re.compile(r"\A(\ufeff?)---[ \t]*\r?\n((?:.*\r?\n)*?)---[ \t]*(?=\r?\n|\Z)")


def with_metadata(text: str, base: str | None, former: str | None = None) -> str:
    """``text`` with the tags, the library and the base that its metadata lack.

    Args:
        former: the base that was written here; where it is still named, ``base`` takes its place.

    Raises `ValueError` or ``yaml.YAMLError`` where the metadata are no mapping that can be read.
    """
    text = _stale(text, base, former)
    wanted = ["lora", "quantlora", *([f"base_model:adapter:{base}"] if base else [])]
    found = _values(text)
    tags = found.get("tags")
    present = [str(tag) for tag in tags] if isinstance(tags, list) else [str(tags)] if tags else []
    if new := [tag for tag in wanted if tag not in present]:
        text = _add_tags(text, new)
    if not found.get("library_name"):
        text = _set(text, "library_name", "peft")
    if base and not found.get("base_model"):
        text = _set(text, "base_model", base)
    tags = _values(text).get("tags")
    if not isinstance(tags, list) or any(
        tag not in tags for tag in wanted
    ):  # a style that is not known here
        raise ValueError("the metadata of the card cannot be changed")
    return text


def _stale(text: str, base: str | None, former: str | None) -> str:
    """``text`` with ``base`` where it names ``former``; without it where there is no ``base``."""
    if not former or former == base or not (match := _BLOCK.match(text)):
        return text
    name = re.escape(former)
    keys = (rf"base_model:[ \t]+{name}", rf"-[ \t]+base_model:adapter:{name}")
    block = match[2]
    for key in keys:
        if base:
            begin = key.removesuffix(name)
            block = re.sub(rf"(?m)^([ \t]*{begin}){name}(?=\s*$)", rf"\g<1>{base}", block)
        else:
            block = re.sub(rf"(?m)^[ \t]*{key}[ \t]*\r?\n", "", block)
    return text[: match.start(2)] + block + text[match.end(2) :]


def _values(text: str) -> dict[Any, Any]:
    import yaml  # type: ignore[import-untyped, unused-ignore]

    match = _BLOCK.match(text)
    found = (yaml.safe_load(match[2]) if match else None) or {}
    if not isinstance(found, dict):
        raise ValueError("the metadata of the card are no mapping")
    return found


def _add_tags(text: str, new: list[str]) -> str:
    """``text`` with further tags, in the style of those that are there."""
    node, start = _node(text, "tags")
    if node is None:
        return _append(text, ["tags:", *(f"- {tag}" for tag in new)])
    items = getattr(node, "value", "")
    first, last = start + node.start_mark.index, start + node.end_mark.index
    if not isinstance(items, list):
        present = "" if node.tag.endswith(":null") else f"{text[first:last]}, "
        gap = "" if text[first - 1 : first] in (" ", "\t") else " "
        return f"{text[:first]}{gap}[{present}{', '.join(new)}]{text[last:]}"
    if node.flow_style:
        end = start + items[-1].end_mark.index if items else last - 1
        return f"{text[:end]}{', ' if items else ''}{', '.join(new)}{text[end:]}"
    end = text.index("\n", start + items[-1].end_mark.index - 1) + 1
    line = _line_end(text)
    added = "".join(f"{' ' * node.start_mark.column}- {tag}{line}" for tag in new)
    return text[:end] + added + text[end:]


def _set(text: str, key: str, value: str) -> str:
    node, start = _node(text, key)
    if node is None:
        return _append(text, [f"{key}: {value}"])
    first, last = start + node.start_mark.index, start + node.end_mark.index
    gap = "" if text[first - 1 : first] in (" ", "\t") else " "
    return f"{text[:first]}{gap}{value}{text[last:]}"


def _node(text: str, key: str) -> tuple[Any, int]:
    """The value of ``key`` as the parser has it, and where the block begins; None without one."""
    import yaml

    match = _BLOCK.match(text)
    root: Any = yaml.compose(match[2]) if match else None
    pairs = [] if root is None else root.value
    found = [value for name, value in pairs if name.value == key]
    return (found[-1] if found else None), (match.start(2) if match else 0)


def _append(text: str, lines: list[str]) -> str:
    """``text`` with further lines of metadata, in a block of its own where it has none."""
    line = _line_end(text)
    added = "".join(text + line for text in lines)
    if match := _BLOCK.match(text):
        if match[2].strip() == "{}":
            return text[: match.start(2)] + added + text[match.end(2) :]
        return text[: match.end(2)] + added + text[match.end(2) :]
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    return f"{mark}---{line}{added}---{line}{text.removeprefix(mark)}"


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
