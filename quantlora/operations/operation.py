"""`Operation`: one row of the table in docs/operations.md, as something that can be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantlora.errors import ConfigError, MergeError, QuantloraError
from quantlora.operations.results import WrongResultError, hold
from quantlora.operations.trial import Trial

#: What the errors say that are wanted where an operation cannot be done.
_PACKS = (MergeError, 'mode="dequantize"')
_VARIES = (ConfigError, "cannot be combined")


@dataclass(frozen=True)
class Operation:
    """One operation of an adapter's life.

    Args:
        name: as docs/operations.md has it.
        run: does it, and raises `WrongResultError` where a result is wrong.
        packs: it needs a format that can be packed again.
        variant: the one it is about, whose adapters cannot be of another variant too.
    """

    name: str
    run: Callable[[Trial], None]
    packs: bool = False
    variant: str = "lora"

    @property
    def varies(self) -> bool:
        """Whether it is about a variant of its own."""
        return self.variant != "lora"

    def check(self, trial: Trial) -> None:
        """Do it; where it cannot be done, hold that the documented error says so."""
        refusal = self.refusal(trial)
        if refusal is None:
            self.run(trial)
        else:
            self._check_refused(trial, *refusal)

    def refusal(self, trial: Trial) -> tuple[type[QuantloraError], str] | None:
        """The error that is wanted, and a part of its text; None where it can be done."""
        if self.packs and not trial.format.can_quantize:
            return _PACKS
        clash = self.varies and trial.variant not in ("lora", self.variant)
        return _VARIES if clash else None

    def _check_refused(self, trial: Trial, error: type[QuantloraError], text: str) -> None:
        try:
            self.run(trial)
        except error as raised:
            hold(text in str(raised), f"the error does not say {text!r}: {raised}")
        else:
            raise WrongResultError(f"{self.name!r} should be refused by a {error.__name__}")


def operation(
    name: str, packs: bool = False, variant: str = "lora"
) -> Callable[[Callable[[Trial], None]], Operation]:
    """Make an `Operation` of a function, under the name it has in the docs."""
    return lambda run: Operation(name, run, packs, variant)
