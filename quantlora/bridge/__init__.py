"""Transformers' own methods on a wrapped model, without PEFT."""
