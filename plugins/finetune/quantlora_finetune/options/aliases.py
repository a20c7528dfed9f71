"""Options as other programs name them: each is taken, or answered by what does it here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from quantlora.errors import ConfigError
from quantlora_finetune.options.spellings import ELSEWHERE, SAME, SWITCHES, VALUES

_YES, _NO, _AUTO = ("true", "1", "yes", "on"), ("false", "0", "no", "off"), ("auto", "none", "null")


def translated(arguments: Sequence[str], flags: Collection[str] = ()) -> list[str]:
    """``arguments`` with our names for the options.

    Args:
        flags: our own options that take no value; others write ``true`` or ``false`` behind them.

    Raises:
        ConfigError: there is no such option here; it says what does the same.
    """
    left = list(arguments)
    found = list(_translate(left, flags))
    return _without_contradiction(found, {_name(argument) for argument in arguments})


def _translate(left: list[str], flags: Collection[str]) -> Iterator[str]:
    while left:
        argument = left.pop(0)
        option, equals, value = argument.partition("=")
        name = _name(argument)
        if name in ELSEWHERE:
            raise ConfigError(f"there is no option {option}: {ELSEWHERE[name]}.")
        if name in SWITCHES or name in flags:
            if not equals and left and left[0].lower() in (*_YES, *_NO, *_AUTO):
                value = left.pop(0)
            yield from _switched(name, value.lower())
        elif name in SAME or name in VALUES:
            ours = SAME.get(name, name)
            if not equals and left:
                left[0] = VALUES.get(ours, {}).get(left[0], left[0])
            yield f"--{ours}{equals}{VALUES.get(ours, {}).get(value, value)}"
        else:
            yield argument


def _name(argument: str) -> str:
    option = argument.partition("=")[0]
    return option[2:].replace("_", "-") if option.startswith("--") else ""


def _switched(name: str, value: str) -> Sequence[str]:
    on, off = SWITCHES.get(name, ((f"--{name}",), ()))
    if value in _AUTO:
        return ()
    return off if value in _NO else on


def _without_contradiction(found: list[str], typed: Collection[str]) -> list[str]:
    """``load_in_4bit: false`` says nothing where another option tells the bits."""
    off = list(SWITCHES["load-in-4bit"][1])
    tells = {"bits", "load-in-8bit", "quantization-bit", "backend"} & set(typed)
    if not tells or "load-in-4bit" not in typed:
        return found
    for i in range(len(found) - 1):
        if found[i : i + 2] == off:
            return found[:i] + found[i + 2 :]
    return found
