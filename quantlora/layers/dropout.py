"""Dropout of an adapter's input that keeps a seed for backward, and no mask.

The mask is drawn again where it is needed. Each element has 15 random bits, so a probability is
rounded to 1/32768, and what is kept is scaled by the rounded one. They are not the bits that
`nn.Dropout` draws. Products in float32 and float64 have `nn.Dropout` itself, and so the masks that
PEFT has for the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Values of an element's random bits.
_STEPS = 1 << 15
#: Elements worked on at a time, so that their bits stay in cache; they fill whole words.
_CHUNK = 1 << 18
#: Elements that one random int64 has bits for.
_PER_WORD = 4


@dataclass(frozen=True)
class SeededDropout:
    """Drops ``dropped`` of 32768 elements; the same ones each time it is called."""

    dropped: int
    seed: int

    @classmethod
    def drawn(cls, p: float) -> SeededDropout:
        """One of probability ``p`` in [0, 1), with a seed from torch's generator for the CPU."""
        return cls(min(round(p * _STEPS), _STEPS - 1), int(torch.randint(2**63 - 1, ())))

    @property
    def scale(self) -> float:
        """What the kept elements are to be multiplied by."""
        return _STEPS / (_STEPS - self.dropped)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with zeros, in new memory, not scaled. Two bytes an element, outside autograd."""
        x = x.contiguous()
        kept = torch.empty_like(x)
        given, taken = (torch.split(t.view(-1).view(torch.int16), _CHUNK) for t in (x, kept))
        generator = torch.Generator(x.device).manual_seed(self.seed)
        count = -(-min(_CHUNK, x.numel()) // _PER_WORD)
        words = torch.empty(count, dtype=torch.int64, device=x.device)
        for part, to in zip(given, taken, strict=True):
            torch.bitwise_and(part, self._mask(words, generator)[: len(part)], out=to)
        return kept

    def _mask(self, words: Tensor, generator: torch.Generator) -> Tensor:
        """All ones where an element is kept, else 0: int16 in the memory of ``words``."""
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        least = self.dropped - _STEPS // 2  # of the values that are kept
        return bits.bitwise_right_shift_(1).neg_().add_(least - 1).bitwise_right_shift_(15)
