"""The LoRA layers: mathematics, and what a layer knows of its adapters. Start at ``linear.py``."""
