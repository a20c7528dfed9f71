"""Names that the pages' notes may use: small models, and comparisons."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import quantlora
from quantlora.testing.models import save_tiny_llama, tiny_llama, tiny_tokenizer
from tests.tools.expert_models import mixtral

IDS = torch.arange(3 * 8).reshape(3, 8) * 7 % 80


def trained(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def randomize(model: nn.Module) -> None:
    """An adapter as if it had been trained."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)


def assert_same(ours: nn.Module, theirs: nn.Module, within: float = 1e-5) -> None:
    """Equal logits; ``within`` is relative to the largest."""
    with torch.no_grad():
        left, right = ours.eval()(IDS).logits.float(), theirs.eval()(IDS).logits.float()
    torch.testing.assert_close(left, right, rtol=0, atol=within * float(right.abs().max()))


def equal_start(ours: nn.Module, theirs: nn.Module) -> None:
    """Give our adapter the first values of PEFT's."""
    prefix = "base_model.model."
    values = {n.removeprefix(prefix): p for n, p in theirs.named_parameters() if "lora_" in n}
    ours.load_state_dict(values, strict=False)


def bnb_4bit() -> nn.Module:
    """A model that Transformers has loaded in 4 bits."""
    folder = save_tiny_llama("a-model")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def packed_layers(model: nn.Module) -> int:
    return sum(type(module).__name__ == "NormalFloatLinear" for module in model.modules())


GIVEN = {
    "torch": torch, "nn": nn, "quantlora": quantlora, "ids": IDS,
    "AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer,
    "BitsAndBytesConfig": BitsAndBytesConfig,
    "tiny_llama": tiny_llama, "tiny_tokenizer": tiny_tokenizer, "save_tiny_llama": save_tiny_llama,
    "mixtral": mixtral, "trained": trained, "randomize": randomize, "assert_same": assert_same,
    "bnb_4bit": bnb_4bit, "equal_start": equal_start, "packed_layers": packed_layers,
}  # fmt: skip
