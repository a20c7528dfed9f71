"""`OPERATIONS`: the list that docs/operations.md shows by backend, in its order."""

from __future__ import annotations

from quantlora.operations import adapter_operations, merge_operations, training_operations
from quantlora.operations.operation import Operation

_CHAPTERS = (training_operations, adapter_operations, merge_operations)

#: Every operation by its name.
OPERATIONS: dict[str, Operation] = {
    value.name: value
    for chapter in _CHAPTERS
    for value in vars(chapter).values()
    if isinstance(value, Operation)
}
