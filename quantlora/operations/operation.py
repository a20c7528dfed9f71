"""`Operation`: one row of the table in docs/operations.md, as something that can be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantlora.errors import ConfigError, MergeError, QuantloraError
from quantlora.operations.results import WrongResultError, hold
from quantlora.operations.trial import Trial


@dataclass(frozen=True)
class Refusal:
    """Why an operation cannot be done, the error that is wanted then, and a part of its text."""

    error: type[QuantloraError]
    text: str
    reason: str


_PACKS = Refusal(MergeError, 'mode="dequantize"', "the format cannot quantize: it is only read")
_VARIES = Refusal(ConfigError, "cannot be combined", "an adapter is of one variant")


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
            self._check_refused(trial, refusal)

    def refusal(self, trial: Trial) -> Refusal | None:
        """Why it cannot be done on what is tried; None where it can."""
        if self.packs and not trial.format.can_quantize:
            return _PACKS
        clash = self.varies and trial.variant not in ("lora", self.variant)
        return _VARIES if clash else None

    def _check_refused(self, trial: Trial, refusal: Refusal) -> None:
        try:
            self.run(trial)
        except refusal.error as raised:
            said = refusal.text in str(raised)
            hold(said, f"the error does not say {refusal.text!r}: {raised}")
        else:
            wanted = refusal.error.__name__
            raise WrongResultError(f"{self.name!r} should be refused by a {wanted}")


def operation(
    name: str, packs: bool = False, variant: str = "lora"
) -> Callable[[Callable[[Trial], None]], Operation]:
    """Make an `Operation` of a function, under the name it has in the docs."""
    return lambda run: Operation(name, run, packs, variant)
