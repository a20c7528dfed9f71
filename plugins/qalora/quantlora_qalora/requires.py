"""What the environment report looks at: no library is needed, but a format with groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlora.checks import Check

if TYPE_CHECKING:
    from torch import nn


def check() -> Check:
    return Check("qalora", layer=_sample)


def _sample() -> nn.Module:
    from quantlora_qalora.sample import grouped_layer

    return grouped_layer()
