"""bitsandbytes for quantlora: the formats ``bitsandbytes_4bit`` and ``bitsandbytes_8bit``."""
