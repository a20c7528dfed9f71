"""PEFT's usual names over quantlora: ``import quantlora.peft as peft``.

LoRA only. What is not here raises an AttributeError that says so; nothing is a stub.
"""

from __future__ import annotations

from typing import Any

from quantlora.peft.auto_model import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from quantlora.peft.config import EvaConfig, LoftQConfig, LoraConfig, PeftConfig, PeftType, TaskType
from quantlora.peft.functions import (
    get_peft_config,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
)
from quantlora.peft.model import (
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    get_peft_model,
)

__all__ = [
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "EvaConfig",
    "LoftQConfig",
    "LoraConfig",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "prepare_model_for_kbit_training",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"quantlora.peft has no {name!r}: it has PEFT's usual names for LoRA, "
        f"{', '.join(__all__)}. For anything else, import peft itself.",
        name=name,
    )
