"""What Transformers reads on a model to know that it has adapters."""

#: What Trainer looks at before it trains a quantized model.
TRAINABLE_FLAG = "_hf_peft_config_loaded"
#: Where Transformers remembers ``enable_peft_hotswap``.
HOTSWAP_FLAG = "_hotswap_enabled"
