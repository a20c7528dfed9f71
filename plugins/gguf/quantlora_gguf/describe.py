"""What a GGUF file says of its model, from its header alone."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from quantlora import StoredModel, StoredTensor
from quantlora_gguf.gguf_file import GgufFile
from quantlora_gguf.load_model import without_weights
from quantlora_gguf.model_config import model_config
from quantlora_gguf.model_plan import ModelPlan
from quantlora_gguf.tensor_names import TensorNames


def described(path: Path) -> StoredModel:
    """The model in the file at ``path``, and the blocks and bytes of each of its parameters."""
    file = GgufFile(path)
    model = without_weights(model_config(file))
    plan = ModelPlan.of(file, model, TensorNames(model, file.architecture))
    tensors = {}
    for name, sources in plan.sources.items():
        parts = [file.tensors[source] for source in sources]
        kinds = dict.fromkeys(part.kind.name if part.kind else "F32" for part in parts)
        tensors[name] = StoredTensor("/".join(kinds), sum(part.nbytes for part in parts))
    return StoredModel(model, tensors, _settings(file))


def _settings(file: GgufFile) -> dict[str, str]:
    """The kinds of blocks, by their share of the file's bytes, the most first."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for tensor in file.tensors.values():
        sizes[tensor.kind.name if tensor.kind else "F32"] += tensor.nbytes
    whole = sum(sizes.values()) or 1
    most_first = sorted(sizes, key=lambda kind: -sizes[kind])
    return {kind: f"{sizes[kind] / whole:.1%}" for kind in most_first}
