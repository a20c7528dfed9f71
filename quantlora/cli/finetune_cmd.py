"""``quantlora finetune``."""

from __future__ import annotations


def finetune() -> None:
    """Fine-tune a quantized model with LoRA."""
    raise NotImplementedError
