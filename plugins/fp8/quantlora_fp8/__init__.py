"""8-bit floats for quantlora: the format ``fp8``, in Transformers' layers and others."""
