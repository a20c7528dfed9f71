"""What both formats need. Read by the environment report too, so torch is not imported here."""

from __future__ import annotations

from collections.abc import Iterable

from quantlora.checks import Note
from quantlora.requirements import Requirement

#: 0.47 is the first version that has every form on every device: on a CPU, 0.46.1 lacks FP4 and
#: unpacks from uint8 storage only, and 0.45.5 packs nothing.
REQUIRES = (Requirement("bitsandbytes>=0.47"),)

#: The first version that repacks on a CPU.
_REPACKS = Requirement("bitsandbytes>=0.49")
REPACKED = Note(
    "On a CPU with AVX512-BF16, bitsandbytes repacks a 4-bit weight for inference at its first "
    "forward in eval mode. wrap undoes that: the codes exactly, the scales as bitsandbytes has "
    "rounded them to bfloat16.",
    "Wrap the model before its first forward, and nothing is rounded.",
)


def repacks_here() -> Iterable[Note]:
    """`REPACKED` where processor and version do that; from metadata only."""
    from quantlora import cpu_flags

    return (REPACKED,) if cpu_flags()["avx512_bf16"] and _REPACKS.check() else ()
