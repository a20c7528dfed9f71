"""Gemma's quantized layers for quantlora: the format ``gemma_quant`` of official small Gemmas."""
