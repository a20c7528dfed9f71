"""Every error quantlora raises on purpose.

Each message says what went wrong, where (the module path or file), whose it is (the plugin,
the library, the caller) and what to do. ``docs/errors.md`` lists them; a test holds both together.
"""

from __future__ import annotations

import sys
import warnings


class QuantloraError(Exception):
    """Base of all errors raised by quantlora."""


class ConfigError(QuantloraError, ValueError):
    """A field of a config is missing, unknown, out of range or contradicts another."""


class TargetError(ConfigError):
    """A target or pattern names no layer of the model."""


class BackendError(QuantloraError, ValueError):
    """The backend asked for is unknown, or cannot do what was asked of this layer."""


class LayerError(QuantloraError, TypeError):
    """No quantizer, or more than one, takes a layer."""


class MissingLibraryError(QuantloraError, ImportError):
    """A library is missing, too old, or known to be wrong here."""


class AdapterError(QuantloraError, ValueError):
    """An adapter is unknown, exists already, or is in the wrong state (merged, say)."""


class AdapterFileError(QuantloraError, OSError):
    """An adapter on disk is missing, damaged, unsafe, or does not fit the model."""


class ChangedBaseError(QuantloraError, RuntimeError):
    """A frozen weight was changed between forward and backward, which needs it once more."""


class MergeError(QuantloraError, ValueError):
    """A merge cannot be done in the mode asked for."""


class FinetuneError(QuantloraError):
    """A fine-tuning run cannot start or continue: its model, data or output folder."""


class NonFiniteError(QuantloraError, FloatingPointError):
    """A gradient became NaN or infinite in training."""


class AdapterWarning(UserWarning):
    """An adapter was loaded or saved, and something about it should be known."""


class PluginWarning(UserWarning):
    """A plugin was disabled; everything else works on."""


def warn(message: str, category: type[Warning] = AdapterWarning) -> None:
    """A warning at the line outside quantlora and its plugins that led here."""
    warnings.warn(message, category, stacklevel=_depth_of_caller())


def _depth_of_caller() -> int:
    """The ``stacklevel`` of that line, counted from `warn`."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_internal(str(frame.f_globals.get("__name__"))):
        depth, frame = depth + 1, frame.f_back
    return depth


def _is_internal(module: str) -> bool:
    package = module.partition(".")[0]  # torch: its decorators stand between our functions
    return package in ("quantlora", "importlib", "contextlib", "torch") or package.startswith(
        "quantlora_"
    )
