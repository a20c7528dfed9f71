"""What a merge did to each layer, and what it lost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantlora.formats.quantizer import Quantizer
from quantlora.html_tables import Bar, html_lines, html_table
from quantlora.merging.rounding import ROUNDING

#: Above this relative loss most of an update did not survive packing.
MOST = 0.5


@dataclass(frozen=True)
class LayerMerge:
    """One merged layer.

    Args:
        path: its place.
        format: the format it is in now.
        delta_norm: Frobenius norm of the update.
        loss: ``‖stored - wanted‖ / ‖update‖``; 0 is exact, 1 is as large as the update itself.
            Of an update of zero: relative to the weight.
    """

    path: str
    format: str
    delta_norm: float
    loss: float

    @classmethod
    def measure(
        cls, path: str, target: Quantizer, before: Tensor, wanted: Tensor, read_back: Tensor
    ) -> LayerMerge:
        delta = float((wanted.float() - before.float()).norm())
        error = float((read_back.float() - wanted.float()).norm())
        scale = delta or float(wanted.float().norm()) or 1.0
        return cls(path, target.name, delta, error / scale)


@dataclass(frozen=True)
class MergeReport:
    """All merged layers, in the model's order."""

    layers: list[LayerMerge]

    @property
    def worst(self) -> LayerMerge | None:
        return max(self.layers, key=lambda layer: layer.loss, default=None)

    def warning(self) -> str:
        """What to say when most of an update was lost; empty when all is well."""
        lossy = [layer for layer in self.layers if not layer.loss <= MOST]
        worst = self.worst
        if not lossy or worst is None:
            return ""
        return (
            f"merging lost most of the update in {len(lossy)} of {len(self.layers)} layers: the "
            f"rounding of {worst.format!r} is {worst.loss:.2f} times the update at {worst.path}. "
            f"{ROUNDING.fix}"
        )

    def __str__(self) -> str:
        rows = [f"{layer.loss:10.4f}  {layer.format:20}  {layer.path}" for layer in self.layers]
        return "\n".join([f"{'loss':>10}  {'format':20}  layer", *rows])

    def _repr_html_(self) -> str:
        rows = [
            (layer.path, layer.format, Bar(layer.loss, f"{layer.loss:.4f}"))
            for layer in self.layers
        ]
        table = html_table(("layer", "format", "loss of the update"), rows)
        return table + html_lines(filter(None, [self.warning()]))
