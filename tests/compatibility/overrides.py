"""What a tiny config needs beyond the common names of its fields, by architecture."""

from __future__ import annotations

from typing import Any

#: For the config within others that has this ``model_type``, wherever it stands.
WITHIN: dict[str, dict[str, Any]] = {}
#: For the architecture itself; a dict is for the config within that has this name.
OVERRIDES: dict[str, dict[str, Any]] = {}
