"""`load`: a model from disk or the hub, its layers and experts packed as their tensors arrive."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from packaging.version import Version
from torch import nn

from quantlora.checkpoint.base_vocabulary import note_vocabulary
from quantlora.discovery.registration import AUTO, registry
from quantlora.errors import BackendError, ConfigError, MissingLibraryError
from quantlora.formats.model_loader import LoadRequest, ModelLoader
from quantlora.formats.quantizer import FLOAT
from quantlora.loading.pack_plan import Wanted, listed
from quantlora.loading.pretrained import pretrained, resolve_model
from quantlora.transformers_models import named_class

if TYPE_CHECKING:
    from quantlora.loading.packing_folder import PackingFolder

#: The first Transformers whose loader gives each tensor to a quantizer of a plugin's.
_SINCE = "5.0"


def load(
    model_id_or_path: str | os.PathLike[str],
    *,
    backend: str = AUTO,
    bits: int | None = None,
    quantize_options: Mapping[str, Any] | None = None,
    target_modules: str | Iterable[str] = "all-linear",
    exclude_modules: str | Iterable[str] | None = None,
    target_experts: bool = True,
    packed_folder: str | os.PathLike[str] | None = None,
    model_class: Any = None,
    **arguments: Any,
) -> nn.Module:
    """Load a model; with a ``backend`` its layers and experts are packed as their tensors arrive.

    The float model never exists: beside what is packed there is one layer, or the experts of one
    layer, in float. Embeddings, norms, routers and the output head stay float.

    Args:
        model_id_or_path: a folder, a hub id, or a file that a plugin loads (``quantlora_loaders``).
        backend: ``"auto"`` loads the model as it is, packed if the checkpoint is. The name of a
            format that packs (``"bitsandbytes_4bit"``, ...) packs float layers in it.
        bits: of that format; the same as ``quantize_options={"bits": bits}``.
        quantize_options: that format's settings.
        target_modules, exclude_modules, target_experts: which layers are packed, as in `wrap`.
        packed_folder: where what is packed is written layer by layer, as `save_packed` would. A
            load that was stopped goes on there; when all is written, the next one with the same
            arguments, or ``load(packed_folder)``, packs nothing. Processes under torchrun share it.
        model_class: Transformers' class or auto class; default: the one that the checkpoint names,
            else ``AutoModelForCausalLM``.
        arguments: for ``from_pretrained``: ``dtype``, ``device_map``, ``revision``, ``token``, ...

    Returns:
        The model in evaluation mode, without adapters; `wrap` puts them on.

    Raises:
        ConfigError: there is no such model, or Transformers refuses it; ``packed_folder`` is of
            other files or settings.
        BackendError: the format cannot pack, or not this model.
        MissingLibraryError: a library is missing, or too old to pack while it loads.
    """
    options = {**(quantize_options or {}), **({} if bits is None else {"bits": bits})}
    if options and backend == AUTO:
        raise ConfigError(
            f"load: {', '.join(options)} are settings of a format, and backend='auto' packs "
            f"nothing: name the format that is to pack."
        )
    request = LoadRequest(os.fspath(model_id_or_path), backend, options, arguments, model_class)
    wanted = Wanted(listed(target_modules), listed(exclude_modules), target_experts)
    if packed_folder is not None:
        return _packed_into(packed_folder, request, wanted)
    if (loader := claiming_loader(request)) is not None:
        for need in loader.requires:
            need.check().require()
        model = loader.load(request)
        note_vocabulary(model)
        return model
    return _from_transformers(request, wanted)


def _packed_into(folder: str | os.PathLike[str], request: LoadRequest, wanted: Wanted) -> nn.Module:
    """The model packed into ``folder``, or read from it where all of it is there."""
    from quantlora.loading.packing_folder import PackingFolder

    if request.backend in (AUTO, FLOAT) or claiming_loader(request) is not None:
        raise ConfigError(
            f"load: packed_folder is for float models that backend=... packs: load "
            f"{request.source} without it."
        )
    kept = PackingFolder(folder, request, wanted)
    if kept.finished:
        done = replace(request, source=str(kept.path), backend=AUTO, options={})
        return _from_transformers(done, wanted)
    model = _from_transformers(request, wanted, kept)
    kept.finish(model)
    return model


def claiming_loader(request: LoadRequest) -> ModelLoader | None:
    """The plugin's loader whose file it is."""
    known = registry()
    found = [loader for loader in known.loaders.values() if known.claims(loader, request)]
    if len(found) > 1:
        names = " and ".join(repr(loader.name) for loader in found)
        raise ConfigError(
            f"{request.source} is claimed by the loaders {names}: disable a plugin with "
            f"QUANTLORA_DISABLE."
        )
    return found[0] if found else None


def _from_transformers(
    request: LoadRequest, wanted: Wanted, folder: PackingFolder | None = None
) -> nn.Module:
    from quantlora.loading.pack_on_arrival import PackOnArrival, StoppedError
    from quantlora.loading.transformers_quantizer import PackingConfig, register

    source = resolve_model(request.source)
    register()
    config = pretrained(source, lambda: _config(source, request.arguments))
    arguments = {**request.arguments, "config": config}
    job = None
    if request.backend not in (AUTO, FLOAT) and not _is_packed(config, request):
        _check_version()
        job = PackOnArrival(registry().quantizer(request.backend), request.options, wanted, folder)
        arguments["quantization_config"] = PackingConfig(job=job)
    names = {name: getattr(config, name, None) for name in ("architectures", "auto_map")}
    kind = request.model_class or named_class(names)
    try:
        model: nn.Module = pretrained(source, lambda: kind.from_pretrained(source, **arguments))
    except StoppedError as stopped:
        raise stopped.error from stopped.error.__cause__
    return model


def _config(source: str, arguments: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    names = ("revision", "token", "cache_dir", "trust_remote_code", "subfolder", "local_files_only")
    given = {name: arguments[name] for name in names if name in arguments}
    return arguments.get("config") or AutoConfig.from_pretrained(source, **given)


def _is_packed(config: Any, request: LoadRequest) -> bool:
    """Whether the checkpoint is in the asked format already; `BackendError` if in another one."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return False
    given = given if isinstance(given, Mapping) else given.to_dict()
    formats = {given.get("quant_method"), *given.get("formats", ())}
    if given.get("quant_method") == "bitsandbytes":
        formats.add("bitsandbytes_4bit" if given.get("load_in_4bit") else "bitsandbytes_8bit")
    if request.backend not in formats:
        raise BackendError(
            f"{request.source} is quantized already ({given.get('quant_method')}), and "
            f'backend={request.backend!r} was asked for: load it with backend="auto", or a float '
            f"checkpoint of the model."
        )
    return True


def _check_version() -> None:
    found = importlib.metadata.version("transformers")
    if Version(found) < Version(_SINCE):
        raise MissingLibraryError(
            f"quantlora.load packs while it loads with transformers>={_SINCE}, and {found} is "
            f"installed: upgrade it, or load the float model and call quantlora.quantize."
        )
