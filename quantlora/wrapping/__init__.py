"""The way through `wrap`: targets, plan, quantizing, transaction. Start at ``wrap.py``."""
