"""One small model of each family, with its real layers and its real names."""

from __future__ import annotations

import torch
import transformers as t

_SMALL = {
    "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 64, "pad_token_id": 1,
}  # fmt: skip
_DECODER = {**_SMALL, "num_key_value_heads": 2, "head_dim": 16}
_SEQ2SEQ = {
    "vocab_size": 128, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "max_position_embeddings": 64,
}  # fmt: skip
_T5 = {
    "vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip

FAMILIES = {
    "llama": (t.LlamaForCausalLM, t.LlamaConfig, _DECODER),
    "mistral": (t.MistralForCausalLM, t.MistralConfig, _DECODER),
    "falcon": (t.FalconForCausalLM, t.FalconConfig, {**_SMALL, "ffn_hidden_size": 128}),
    "bart": (t.BartForConditionalGeneration, t.BartConfig, _SEQ2SEQ),
    "t5": (t.T5ForConditionalGeneration, t.T5Config, _T5),
    "deberta": (
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config,
        {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "bert": (t.BertForSequenceClassification, t.BertConfig, _SMALL),
    "roberta": (t.RobertaForMaskedLM, t.RobertaConfig, _SMALL),
    "gemma": (t.Gemma3ForCausalLM, t.Gemma3TextConfig, _DECODER),
    "qwen": (t.Qwen2ForCausalLM, t.Qwen2Config, _DECODER),
}


def make(family, **changes):
    """A model of the family with random weights, in evaluation mode."""
    cls, config, settings = FAMILIES[family]
    torch.manual_seed(0)
    return cls(config(**{**settings, **changes})).eval()


def logits(model):
    """Outputs for a fixed input, in float32."""
    ids = torch.arange(2, 34).view(2, 16)
    fields = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **fields).logits.float()
