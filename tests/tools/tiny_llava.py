"""A vision-language model with random weights, its processor, and chats about pictures."""

from __future__ import annotations

from typing import Any

import torch

from quantlora.testing.models import tiny_tokenizer

_IMAGE = "<image>"
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_llava() -> tuple[Any, Any]:
    """The model, of one layer each, and its processor: pictures of 16 x 16, patches of 8."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
    tokenizer.pad_token = "</s>"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, **heads, image_size=16, patch_size=8),
        text_config=LlamaConfig(**sizes, **heads, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        vision_feature_layer=-1,
    )
    sides = {"height": 16, "width": 16}
    pictures = CLIPImageProcessor(size=sides, crop_size=sides)
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config), processor


def examples(count: int) -> Any:
    """Chats in the form of TRL: ``images`` and ``messages``."""
    from datasets import Dataset
    from PIL import Image

    chat = [
        {"role": "user", "content": "What colour is it?"},
        {"role": "assistant", "content": "red"},
    ]
    picture = Image.new("RGB", (16, 16), (255, 0, 0))
    return Dataset.from_list([{"images": [picture], "messages": chat} for _ in range(count)])
