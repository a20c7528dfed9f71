"""A tiny BPE tokenizer over bytes, as GPT-2 has it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'()-\u0120\u010a"


def byte_tokenizer(size: int) -> Any:
    """At most ``size`` tokens; ``<s>`` before each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = ["<s>", "</s>", *_LETTERS, "th", "the", "\u0120the"][:size]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    make: Any = PreTrainedTokenizerFast  # untyped upstream
    return make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
