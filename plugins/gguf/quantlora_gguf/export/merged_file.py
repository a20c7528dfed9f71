"""`write_merged_file`: a whole model as one GGUF file, its tokenizer in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from quantlora import BackendError, dtype_argument, pretrained
from quantlora_gguf.export.base_names import BaseNames
from quantlora_gguf.export.gguf_output import F32, Output, write_gguf
from quantlora_gguf.export.merged_tensors import HEAD, ROPE, merged_outputs
from quantlora_gguf.export.metadata import add_config, copy_metadata
from quantlora_gguf.export.tokenizer import add_tokenizer
from quantlora_gguf.gguf_file import GgufFile

#: llama.cpp's number for a file of mostly that type (``llama_ftype``).
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32,
    "MXFP4": 38,
}  # fmt: skip
TYPES = tuple(_FILE_TYPES)
#: Of the layout of the blocks (``GGML_QNT_VERSION``).
_BLOCKS_VERSION = 2


def write_merged_file(
    path: Path,
    folder: Path,
    block_type: str,
    like: Path | None = None,
    template: str | None = None,
    shown: Callable[[Iterable[Output]], Iterable[Output]] = iter,
) -> list[Output]:
    """Write the float model in ``folder`` to ``path``; returns what the file holds.

    Args:
        like: a GGUF file of the same architecture, whose metadata are taken; default: they are
            made of the folder's config and tokenizer.
        template: the chat template; default: that of ``like`` or of the tokenizer.

    Raises:
        BackendError: something of the model has no place in the file, see the functions used here.
        ConfigError: there is no whole model in ``folder``, or ``like`` is damaged.
    """
    base = BaseNames(str(folder))
    model = _model(folder)
    outputs = merged_outputs(model, base, block_type)
    if like is not None:
        outputs = _as_in(like, base, outputs)

    def metadata(writer: Any) -> None:
        writer.add_file_type(_FILE_TYPES[block_type])
        writer.add_quantization_version(_BLOCKS_VERSION)
        if like is not None:
            copy_metadata(writer, like, template)
            return
        add_config(writer, base)
        writer.add_name(folder.name)
        add_tokenizer(writer, _tokenizer(folder, template), base.config.vocab_size)

    write_gguf(path, base.architecture, metadata, outputs, shown)
    return outputs


def _as_in(like: Path, base: BaseNames, outputs: list[Output]) -> list[Output]:
    """``outputs`` with the factors of rope that the other file has; checked to be its model's."""
    file = GgufFile(like)
    shapes = {output.name: output.shape for output in outputs if output.name != ROPE}
    if HEAD not in file.tensors:  # a head that was tied, and has an adapter of its own
        shapes.pop(HEAD, None)
    theirs = {name: tensor.shape for name, tensor in file.tensors.items() if name != ROPE}
    if file.architecture != base.architecture or shapes != theirs:
        other = [name for name in {**shapes, **theirs} if shapes.get(name) != theirs.get(name)]
        raise BackendError(
            f"{like} is no file of the same model: it is a {file.architecture!r} and this is a "
            f"{base.architecture!r}" + (f", and {min(other)} differs." if other else ".")
        )
    kept = [output for output in outputs if output.name != ROPE]
    if ROPE not in file.tensors:
        return kept
    return [*kept, Output(ROPE, file.tensors[ROPE].shape, F32, lambda: file.values(ROPE))]


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    wanted: dict[str, Any] = dtype_argument("auto")
    return pretrained(str(folder), lambda: AutoModelForCausalLM.from_pretrained(folder, **wanted))


def _tokenizer(folder: Path, template: str | None) -> Any:
    from transformers import AutoTokenizer

    found: Any = pretrained(str(folder), lambda: AutoTokenizer.from_pretrained(folder))
    found.chat_template = template or found.chat_template
    return found
