"""The way through `wrap`: targets, plan, quantizing, transaction. Start at ``add_adapter.py``."""
