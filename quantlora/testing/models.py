"""Small real models, made on the spot: Transformers architectures with random weights.

No hub is needed, and a test that uses one runs in a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: Characters the tiny tokenizer knows; everything else is ``<unk>``.
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'\"()+-*/=\n"
SPECIAL = ("<unk>", "<s>", "</s>")


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A two-layer Llama, float32, hidden size 64, with grouped heads and an untied output."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(ALPHABET),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character, ``<s>`` before each text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *ALPHABET))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    make: Any = PreTrainedTokenizerFast  # untyped upstream
    fast: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    return fast


def save_tiny_llama(folder: str | Path, **changes: Any) -> Path:
    """A folder that ``from_pretrained`` loads, with model and tokenizer."""
    tiny_llama(**changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)
