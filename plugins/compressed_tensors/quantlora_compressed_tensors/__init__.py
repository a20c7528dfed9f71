"""compressed-tensors for quantlora: files of llm-compressor, packed while they are trained on."""
