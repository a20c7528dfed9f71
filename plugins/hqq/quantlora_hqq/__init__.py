"""HQQ for quantlora: the format ``hqq``, half-quadratic quantization."""
