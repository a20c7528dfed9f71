"""Beside a training loop: what watches it, and what stops it."""
