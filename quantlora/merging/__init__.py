"""Folding adapters into the base and out again; tried by `operations.merge_operations`."""
