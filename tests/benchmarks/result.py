"""What a suite found: rows that JSON, plots and pages are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.timing import Timing


@dataclass
class Result:
    """Rows of one suite.

    Args:
        title: what is measured.
        unit: of ``value``: "ms" or "MiB".
        reference: the arm that ``ratio`` is a share of.
        rows: ``case``, ``arm``, ``value`` and what else the suite has; all JSON.
    """

    title: str
    unit: str
    reference: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, timings: Mapping[str, Timing], errors: Mapping[str, float]) -> None:
        """A case's arms with their times, and how far each is from float64."""
        for arm, timing in timings.items():
            row: dict[str, Any] = {"case": case, "arm": arm, "value": 1e3 * timing.minimum}
            row |= {"median": 1e3 * timing.median, "ratio": timing.ratio}
            row |= {"ratio_low": timing.ratio_low, "ratio_high": timing.ratio_high}
            self.rows.append(row | ({"error": errors[arm]} if arm in errors else {}))

    def as_json(self) -> dict[str, Any]:
        return vars(self)
