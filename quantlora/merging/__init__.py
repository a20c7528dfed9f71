"""Folding adapters into the base and out again."""
