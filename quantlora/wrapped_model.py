"""The doors: a model is wrapped, gets an adapter from a file, and is a plain model again.

Each is the inner function of a lower room plus Transformers' adapter methods, put on the model or
taken from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from quantlora.adapters.adapter_dtype import match_base_dtype
from quantlora.adapters.switch import remove_adapters
from quantlora.bridge.adapter_method import detach
from quantlora.bridge.transformers_bridge import attach
from quantlora.checkpoint.load import add_loaded_adapter
from quantlora.checkpoint.location import AdapterLocation
from quantlora.checkpoint.saved_format import SAVED, quantize_as_saved
from quantlora.config.lora_config import LoraConfig
from quantlora.config.lora_fields import LoraFields, shows_fields
from quantlora.config.peft_config import PeftConfig
from quantlora.discovery.registration import AUTO
from quantlora.errors import AdapterError, ConfigError
from quantlora.files.reference import Reference
from quantlora.merging.merge import merge_and_remove
from quantlora.training.unused_adapters import watch_first_step
from quantlora.wrapping.add_adapter import add_adapter
from quantlora.wrapping.transaction import Transaction

if TYPE_CHECKING:
    from typing_extensions import Unpack

M = TypeVar("M", bound=nn.Module)


@shows_fields
def wrap(
    model: M,
    config: LoraConfig | PeftConfig | None = None,
    *,
    backend: str = AUTO,
    adapter_name: str = "default",
    quantize_options: Mapping[str, Any] | None = None,
    reference: Reference | str | os.PathLike[str] | None = None,
    autocast_adapter_dtype: bool = True,
    **fields: Unpack[LoraFields],
) -> M:
    """Put LoRA adapters on ``model``, in place, and freeze the rest.

    Args:
        model: any `nn.Module`; its layers may be float or in any format a plugin knows, mixed.
        config: the adapter's settings, ours or a LoRA config of PEFT's; or give its fields as
            keywords: ``r=16``.
        backend: ``"auto"`` takes each layer as it is. A quantizer's name asks for that format:
            float layers are quantized to it first.
        adapter_name: a second call with another name adds a second adapter.
        quantize_options: settings for ``backend`` where it quantizes (block size and so on).
        reference: the original float weights, for initializers that want them on a model that is
            quantized already: a folder of safetensors, a hub id, or a function of the path.
        autocast_adapter_dtype: float32 adapters over float16 and bfloat16 layers too; where False
            they are in the layer's dtype.

    Returns:
        The same object. If anything fails, the model is as it was before the call.

    Raises:
        ConfigError, TargetError, BackendError, LayerError, AdapterError, MissingLibraryError: each
            names the setting or the layer's path, and what to do.
    """
    _check_loaded(model, "wrap")
    with _opened(model, adapter_name, autocast_adapter_dtype) as inner:
        add_adapter(
            inner,
            config,
            backend=backend,
            adapter_name=adapter_name,
            quantize_options=quantize_options,
            reference=reference,
            **fields,
        )
    return model


def load_adapter(
    model: M,
    folder: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    backend: str = AUTO,
    quantize_options: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    autocast_adapter_dtype: bool = True,
    key_mapping: Mapping[str, str] | None = None,
) -> M:
    """Put the adapter in ``folder``, written by quantlora or PEFT, on ``model`` and activate it.

    Everything is read and checked before the model is touched; if anything fails, the model is
    as it was.

    Args:
        model: plain or wrapped; its layers in any format a plugin knows.
        folder: a folder, or an id on the Hugging Face hub. With a sub-folder called
            ``adapter_name``, the adapter in there is taken.
        adapter_name: the name it gets in the model.
        is_trainable: train it on; else its parameters are frozen, and the model is put into
            evaluation mode as PEFT does, for an adapter that is used has no dropout.
        backend, quantize_options, autocast_adapter_dtype: as in `wrap`; ``backend="saved"`` packs
            float layers in the format that the adapter was trained on, as its files say it.
        revision, token: for the hub.
        key_mapping: expressions for the file's names of modules and what to put in their place, as
            in ``from_pretrained``. Prefixes of wrappers, and the renamings that Transformers has
            for the model, need none.

    Returns:
        The same model.

    Raises:
        AdapterFileError: the files are missing, damaged, unsafe, or do not fit the model.
        AdapterError: the model has an adapter of that name.
        LayerError, BackendError, MissingLibraryError: as in `wrap`.
    """
    _check_loaded(model, "load_adapter")
    location = AdapterLocation(folder, adapter_name, revision, token, key_mapping)
    with _opened(model, adapter_name, autocast_adapter_dtype, is_trainable) as inner:
        if backend == SAVED:
            quantize_as_saved(inner, location, quantize_options)
            backend, quantize_options = AUTO, None
        add_loaded_adapter(
            inner,
            location,
            is_trainable=is_trainable,
            backend=backend,
            quantize_options=quantize_options,
        )
    return model


def unload(model: M) -> M:
    """Remove every adapter and give the model its plain layers back (merged ones stay merged)."""
    remove_adapters(model)
    detach(model)
    return model


def merge_and_unload(
    model: M, adapters: str | Sequence[str] | None = None, *, mode: str = "requantize"
) -> M:
    """Merge, then leave the plain model without any LoRA layer; the same object.

    Raises:
        MergeError: as `merge`; also when an active adapter would be dropped unmerged.
    """
    merge_and_remove(model, adapters, mode=mode)
    detach(model)
    return model


@contextmanager
def _opened(
    model: nn.Module, adapter: str, autocast_adapter_dtype: bool, trained: bool = True
) -> Iterator[nn.Module]:
    """The model that ``adapter`` is put on within the block; all of it or nothing."""
    inner = _innermost(model, trained)
    with Transaction(inner):
        yield inner
        if not autocast_adapter_dtype:
            match_base_dtype(inner, adapter)
        attach(inner)
    watch_first_step(inner)


def _check_loaded(model: object, what: str) -> None:
    if not isinstance(model, nn.Module):
        given = f"the path {str(model)!r}" if isinstance(model, (str, os.PathLike)) else "it"
        raise ConfigError(
            f"{what} takes a model that is loaded, not {type(model).__name__}: load {given} first, "
            f"for example with transformers.AutoModelForCausalLM.from_pretrained."
        )


def _innermost(model: nn.Module, trained: bool = True) -> nn.Module:
    """``model`` without what ``torch.compile`` and data parallelism put around the whole of it.

    Args:
        trained: whether new parameters would be trained. DistributedDataParallel has noted which
            parameters it sums up over the processes, and would leave these out without a word.
    """
    while True:
        if trained and isinstance(model, nn.parallel.DistributedDataParallel):
            raise AdapterError(
                "DistributedDataParallel would not sum up the gradients of an adapter that comes "
                "after it: put the adapter on the model first, then DistributedDataParallel."
            )
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model
