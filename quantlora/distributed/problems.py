"""What must be changed before a model is shared out: training would fail, or be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from quantlora.distributed.case import DDP, FSDP2, Case
from quantlora.distributed.findings import Finding
from quantlora.formats.offloaded import is_offloaded
from quantlora.units import dtype_name


def _offloaded(case: Case) -> Iterator[Finding]:
    """Layers whose weights are brought in by hooks."""
    paths = [path for path, module in case.model.named_modules() if path and is_offloaded(module)]
    if paths:
        yield Finding(
            "accelerate's device_map keeps its weights elsewhere between uses, and no strategy "
            "can share out what is not there.",
            "Load the model without device_map, or with device_map={'': <this process's device>}.",
            tuple(paths),
        )


def _not_shardable(case: Case) -> Iterator[Finding]:
    """Formats that lose a part of themselves when FSDP2 puts other objects in their parameters'
    place; ZeRO-3 keeps the objects.
    """
    if case.strategy != FSDP2:
        return
    reasons: dict[str, list[str]] = {}
    for path, layer, quantizer in case.packed:
        if why := quantizer.not_shardable(layer):
            reasons.setdefault(why, []).append(path)
    for why, paths in reasons.items():
        yield Finding(why, 'Use strategy "ddp" or another format.', tuple(paths))


def _cast_codes(case: Case) -> Iterator[Finding]:
    """Codes in float storage, which mixed precision would take for numbers."""
    wanted = case.mixed_precision
    if wanted is None or case.strategy == DDP:
        return
    found = [(path, codes.dtype) for path, codes in case.codes() if codes.is_floating_point()]
    paths = tuple(path for path, dtype in found if dtype != wanted)
    if paths:
        yield Finding(
            f"its packed weight is stored as {dtype_name(dict(found)[paths[0]])}, and mixed "
            f"precision would cast it to {dtype_name(wanted)}, which destroys the codes.",
            f"Quantize with quant_storage=torch.{dtype_name(wanted)} "
            f"(bnb_4bit_quant_storage), or leave mixed precision off.",
            paths,
        )


def _mixed_trainable(case: Case) -> Iterator[Finding]:
    """FSDP2 reduces the gradients of a shard together, so they must be of one dtype."""
    if case.strategy != FSDP2:
        return
    blocks: dict[str, dict[torch.dtype, str]] = {}
    for name, parameter in case.model.named_parameters():
        if parameter.requires_grad:
            blocks.setdefault(_block(name), {}).setdefault(parameter.dtype, name)
    for dtypes in blocks.values():
        if len(dtypes) > 1:
            yield Finding(
                f"is trained in {' and '.join(map(dtype_name, dtypes))} beside other parameters of "
                f"its block; FSDP2 wants one dtype for all that is trained in a shard.",
                "Cast them: for p in model.parameters(): p.data = p.data.float() if "
                "p.requires_grad else p.data.",
                tuple(dtypes.values())[1:],
            )
            return


def _merged(case: Case) -> Iterator[Finding]:
    """The base from before a merge is kept outside the model's parameters, and is not shared."""
    layers = case.adapted.lora_layers.items()
    paths = tuple(path for path, layer in layers if layer.bases_before_merge)
    if paths:
        yield Finding(
            "an adapter is merged into it.",
            "Call quantlora.unmerge(model), or merge_and_unload it for good, before training.",
            paths,
        )


def _old_torch(case: Case) -> Iterator[Finding]:
    if case.strategy == FSDP2 and not hasattr(torch.distributed.fsdp, "fully_shard"):
        yield Finding(
            f"torch {torch.__version__} has no torch.distributed.fsdp.fully_shard.",
            "FSDP2 needs torch 2.6 or newer.",
        )


def _block(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` -> ``model.layers.3``: what is usually one shard."""
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: numbered + 1])


PROBLEMS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _old_torch,
    _offloaded,
    _merged,
    _not_shardable,
    _cast_codes,
    _mixed_trainable,
)
