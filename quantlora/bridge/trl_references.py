"""TRL's trainers without ``ref_model``: the reference is the wrapped model's own.

TRL asks ``isinstance(model, PeftModel)`` before it takes the policy with its adapters off. For any
other model it loads the checkpoint again, which is not quantized: another model than the one that
is trained, and the memory of it. All of its trainers load it by one function, and update it by one
callback; these two are taught here, whether TRL was imported before or is imported later. For a
model without adapters of ours they do what they did.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from packaging.version import Version
from torch import nn

from quantlora.adapters.adapter_modules import adapter_modules
from quantlora.errors import AdapterWarning, BackendError
from quantlora.training.reference_model import is_reference, reference_model

#: From this version on, every trainer loads its reference by the function below.
_SINCE = "1.0"


def teach_trl() -> None:
    """Let TRL's trainers use `reference_model`; once is enough."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    for name, teach in _LESSONS.items():
        if name in sys.modules:
            teach(sys.modules[name])


def _teach_loading(utils: ModuleType) -> None:
    original = getattr(utils, "create_model_from_path", None)
    if original is None or Version(importlib.metadata.version("trl")) < Version(_SINCE):
        warnings.warn(
            f"this TRL is older than {_SINCE}: some of its trainers (GRPO, RLOO) load the plain "
            f"checkpoint as reference, not the quantized base that is trained. Update TRL.",
            AdapterWarning,
            stacklevel=2,
        )
        return

    @functools.wraps(original)
    def load(model_id: str, *args: Any, **kwargs: Any) -> Any:
        trainer = sys._getframe(1).f_locals.get("self")
        policy = getattr(trainer, "model", None)  # not there yet while the policy is loaded
        if not isinstance(policy, nn.Module) or not any(adapter_modules(policy)):
            return original(model_id, *args, **kwargs)
        _check_whole(trainer)
        return reference_model(policy)

    _replace("create_model_from_path", original, load)


def _teach_copying(utils: ModuleType) -> None:
    original = utils.create_reference_model

    @functools.wraps(original)
    def copied(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not any(adapter_modules(model)):
            return original(model, *args, **kwargs)
        return reference_model(model)

    _replace("create_reference_model", original, copied)


def _teach_syncing(callbacks: ModuleType) -> None:
    sync: Any = callbacks.SyncRefModelCallback
    original = sync.__init__

    @functools.wraps(original)
    def start(self: Any, ref_model: Any, *args: Any, **kwargs: Any) -> None:
        if is_reference(ref_model):
            raise BackendError(
                "the reference shares the frozen weights of the wrapped model, and cannot be moved "
                "towards it (sync_ref_model=True, an 'ema' teacher): the mean of two adapters' "
                "factors is not the adapter of the mean. Leave the reference fixed."
            )
        original(self, ref_model, *args, **kwargs)

    sync.__init__ = start


def _check_whole(trainer: Any) -> None:
    """DeepSpeed and FSDP cut the reference before the policy: of shared weights, the same ones."""
    for strategy in ("deepspeed", "fsdp"):
        if getattr(trainer, f"is_{strategy}_enabled", False):
            raise BackendError(
                f"{strategy} would cut up the weights that policy and reference share, twice. Give "
                f"ref_model, a model loaded for it alone, or train without {strategy}."
            )


def _replace(name: str, original: object, new: object) -> None:
    """Under every name by which a module of TRL has imported ``original``."""
    for path, module in list(sys.modules.items()):
        if path.startswith("trl.") and vars(module).get(name) is original:
            setattr(module, name, new)


#: By the module of TRL that defines it.
_LESSONS: dict[str, Callable[[ModuleType], None]] = {
    "trl.trainer.utils": _teach_loading,
    "trl.trainer.callbacks": _teach_syncing,
    "trl.experimental.utils": _teach_copying,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Teaches a module of TRL as soon as it has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in _LESSONS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _and_then(spec.loader.exec_module, _LESSONS[name])  # type: ignore
        return spec


def _and_then(
    load: Callable[[ModuleType], None], teach: Callable[[ModuleType], None]
) -> Callable[[ModuleType], None]:
    def both(module: ModuleType) -> None:
        load(module)
        teach(module)

    return both
