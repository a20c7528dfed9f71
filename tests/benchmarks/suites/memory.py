"""Bytes that a step keeps for backward beyond the base's, as a share of PEFT's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.suites import training


def run(size: Size, device: str) -> Result:
    """Counted by `saved_tensors_hooks`, each storage once, parameters and buffers left out."""
    result = Result("Kept for backward beyond the base", "MiB", "peft")
    for case in training.CASES:
        models = training.models(case, size, device)
        errors = training.errors(models, size, device)
        x = training.embedded(size, device)
        kept = {name: saved_bytes(model, x) for name, model in models.items()}
        for name in ("peft", "quantlora"):
            row = {"case": case, "arm": name, "value": (kept[name] - kept["base"]) / 2**20}
            share = (kept[name] - kept["base"]) / (kept["peft"] - kept["base"])
            result.rows.append(row | {"ratio": share, "error": errors[name]})
    return result


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that one forward of ``model`` keeps for its backward."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(inputs_embeds=x.detach().requires_grad_(), use_cache=False).logits.sum()
    total = sum(kept.values())  # while ``loss`` keeps all of them alive, no address is used twice
    del loss
    return total
