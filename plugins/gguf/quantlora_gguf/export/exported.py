"""What ``quantlora export gguf`` does: a folder with the GGUF file and a Modelfile, or nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from quantlora import (
    AdapterFileError,
    BackendError,
    ConfigError,
    dtype_argument,
    export_merged,
    load,
    load_adapter,
    new_folder,
    plain_adapter,
    pretrained,
    resolve_model,
)
from quantlora_gguf.export.adapter_file import adapter_outputs, write_adapter_file
from quantlora_gguf.export.base_names import BaseNames, is_gguf
from quantlora_gguf.export.gguf_output import Output, nbytes
from quantlora_gguf.export.merged_file import write_merged_file
from quantlora_gguf.export.modelfile import MODELFILE, modelfile
from quantlora_gguf.gguf_file import GgufFile
from quantlora_gguf.layer import GgufEmbedding, GgufLinear

ADAPTER = "adapter.gguf"
_CONFIG, _NOTE = "adapter_config.json", "quantlora.json"
#: How the conversations were written that it was trained on; beside adapters and tokenizers.
TEMPLATE = "chat_template.jinja"
#: Shows the tensors going by.
Shown = Callable[[Iterable[Output]], Iterable[Output]]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        model: what the adapter belongs to, as llama.cpp would be given it; None: the file itself.
        template: the file of the chat template that the adapter was trained with, where the base's
            is another one.
    """

    file: Path
    tensors: int
    nbytes: int
    rank: int | None = None
    model: str | None = None
    template: Path | None = None


def export_adapter(
    folder: Path, output: Path, model: str | None, base: Path | None, block_type: str, shown: Shown
) -> Exported:
    """The adapter in ``folder`` alone.

    Args:
        model: its base, where it is another than the files say.
        base: the base's GGUF file, which the adapter is checked against.

    Raises:
        AdapterFileError: there is no adapter, or a part of it has no place in the file.
        BackendError, ConfigError: see `BaseNames`.
    """
    _check_free(output)
    adapter = plain_adapter(folder)
    names = BaseNames(_base(folder, model or adapter.base))
    alpha, outputs = adapter_outputs(adapter, names, block_type)
    found = base or (names.file.path if names.file else None)
    if found is not None:
        _check_in(found, names, outputs)
    source = str(found) if found else _folder(names.source)
    with new_folder(output) as staging:
        write_adapter_file(staging / ADAPTER, names, alpha, outputs, shown)
        (staging / MODELFILE).write_text(modelfile(source, ADAPTER), "utf-8")
    size = sum(map(nbytes, outputs))
    template = (folder / TEMPLATE).absolute() if template_in(folder) else None
    base_file = str(found) if found else ""
    return Exported(output / ADAPTER, len(outputs), size, alpha, base_file, template)


def export_model(
    folder: Path, output: Path, model: str | None, base: Path | None, block_type: str, shown: Shown
) -> Exported:
    """The adapter in ``folder`` merged into its base, or the whole model that is in it.

    Args: as of `export_adapter`; of ``base`` the metadata are taken.

    Raises:
        MergeError, AdapterFileError, BackendError, ConfigError: what cannot be merged or written.
    """
    _check_free(output)
    name = f"model-{block_type.lower()}.gguf"
    with tempfile.TemporaryDirectory(dir=_existing(output)) as room:
        merged, source = folder, base
        if (folder / _CONFIG).is_file():
            merged = Path(room) / folder.resolve().name
            own = _merge(folder, merged, model)
            source = base or own
        with new_folder(output) as staging:
            outputs = write_merged_file(
                staging / name, merged, block_type, source, template_in(folder), shown
            )
            (staging / MODELFILE).write_text(modelfile(f"./{name}"), "utf-8")
    return Exported(output / name, len(outputs), sum(map(nbytes, outputs)))


def template_in(folder: Path) -> str | None:
    """The chat template that lies in ``folder``."""
    file = folder / TEMPLATE
    return file.read_text("utf-8") if file.is_file() else None


def _merge(folder: Path, merged: Path, model: str | None) -> Path | None:
    """Write the merged model; returns the base where that is a GGUF file."""
    source = _base(folder, model or _named(folder))
    path = Path(source).expanduser()
    file = path.resolve() if is_gguf(path) else None
    loaded: Any = _with_float_ends(load(source)) if file else _plain(source)
    load_adapter(loaded, folder, backend="saved" if (folder / _NOTE).is_file() else "auto")
    export_merged(loaded, merged, check=False, tokenizer=None if file else _tokenizer(source))
    return file


def _with_float_ends(model: nn.Module) -> nn.Module:
    """Packed embeddings are no quantizer's layers: made float, with the heads that they tie."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    modules = list(model.named_modules())
    for path, module in modules:
        if isinstance(module, GgufEmbedding):
            weight = nn.Parameter(module.dequantize(), requires_grad=False)
            rows, width = weight.shape
            embedding = nn.Embedding(rows, width, device="meta")
            embedding.weight = weight
            made[module.weight] = embedding.weight
            model.set_submodule(path, embedding)
    for path, module in modules:
        if isinstance(module, GgufLinear) and module.weight in made:
            rows, width = made[module.weight].shape
            head = nn.Linear(width, rows, bias=False, device="meta")
            head.weight = made[module.weight]
            model.set_submodule(path, head)
    return model


def _plain(source: str) -> Any:
    from transformers import AutoModelForCausalLM

    resolved, wanted = resolve_model(source), dtype_argument("auto")
    return pretrained(resolved, lambda: AutoModelForCausalLM.from_pretrained(resolved, **wanted))


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    resolved = resolve_model(source)
    return pretrained(resolved, lambda: AutoTokenizer.from_pretrained(resolved))


def _base(folder: Path, named: str | None) -> str:
    if not named:
        raise AdapterFileError(
            f"{folder / _CONFIG} does not say which model the adapter is for: name it with --model."
        )
    try:
        path = Path(named).expanduser()
        return str(path) if is_gguf(path) else resolve_model(named)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: the base of its adapter is not to be had: {str(error).rstrip('.')}. Where "
            f"it has moved, name it with --model."
        ) from error


def _named(folder: Path) -> str | None:
    fields: dict[str, Any] = json.loads((folder / _CONFIG).read_text("utf-8"))
    return fields.get("base_model_name_or_path")


def _check_free(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not an empty folder: choose another --output.")


def _existing(path: Path) -> Path:
    """The nearest folder that is there, on the file system of what will be written."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _folder(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if path.is_dir() else source


def _check_in(file: Path, names: BaseNames, outputs: list[Output]) -> None:
    """Find here what llama.cpp would refuse when it loads the adapter."""
    found = GgufFile(file)
    adapted = [output.name.rpartition(".")[0] for output in outputs]
    missing = [name for name in adapted if name not in found.tensors]
    if found.architecture != names.architecture or missing:
        what = f"it has no {missing[0]}" if missing else f"it is a {found.architecture!r} model"
        raise BackendError(
            f"{file} is no GGUF file of {names.source}: {what}. Name another one with --base."
        )
