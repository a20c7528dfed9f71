"""What a format can besides the operations, each tried on a layer of its suite."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import torch
from torch import nn

import quantlora
from quantlora.operations.subject import OneLayerModel
from quantlora.testing import OperationTests
from tests.operations_table.recorder import DONE

#: The answer, and why it is not `DONE`.
Answer = tuple[str, str]


def _layer(suite: OperationTests) -> nn.Module:
    return suite.layer()


def pack(suite: OperationTests) -> Answer:
    weight = torch.randn(suite.held_shapes[0])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=suite.biases[0])
    suite.format.quantize(linear, like=suite.layer())
    return DONE, ""


def pack_experts(suite: OperationTests) -> Answer:
    suite.format.quantize_experts(torch.randn(2, 32, 64), "experts.up_proj")
    return DONE, ""


def exact_merge(suite: OperationTests) -> Answer:
    """By QA-LoRA's adapters; the merged layer may be of another format."""
    fields = {"use_qalora": True, "init_lora_weights": False, "r": 1}
    model = quantlora.wrap(OneLayerModel(suite.layer()), target_modules=["proj"], **fields)
    quantlora.merge(model, mode="exact")
    merged = model.lora.quantizer.name
    if merged == suite.quantizer:
        return DONE, ""
    return f"as `{merged}`", "the format holds no float zero-points (Quantizer.from_affine)"


def packed_files(suite: OperationTests) -> Answer:
    layer = suite.layer()
    again = suite.format.from_packed_state(suite.format.packed_state(layer))
    same = torch.equal(*(suite.format.dequantize(one) for one in (layer, again)))
    return (DONE, "") if same else ("fails", "the layer is another one")


def run_alone(suite: OperationTests) -> Answer:
    layer = suite.layer()
    if reason := suite.format.not_runnable(layer):
        return "no", reason
    layer(suite.input(layer, 2))
    return DONE, ""


def shard(suite: OperationTests) -> Answer:
    """As the format declares it; tests/distributed shards some of them."""
    reason = suite.format.not_shardable(suite.layer())
    return ("no", reason) if reason else (DONE, "")


#: Rows of the second table.
ABILITIES: dict[str, Callable[[OperationTests], Answer]] = {
    "packs a float layer": pack,
    "packs fused experts": pack_experts,
    'QA-LoRA, `merge(mode="exact")`': exact_merge,
    "`save_packed`": packed_files,
    "own forward, after `unload`": run_alone,
    "FSDP2": shard,
}


def ask(suite: OperationTests, question: Callable[[OperationTests], Answer]) -> Answer:
    """The answer; an error of ours is a hole, and gives its reason."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return question(suite)
    except quantlora.QuantloraError as error:
        return f"`{type(error).__name__}`", impersonal(str(error), suite.quantizer)


def impersonal(text: str, backend: str) -> str:
    """An error without the names of layer and backend: that of others reads the same."""
    text = re.sub(rf"(format |backend )?'{backend}'", "the format", " ".join(text.split()))
    return re.sub(r"^(proj|experts\.up_proj): ", "", text)
