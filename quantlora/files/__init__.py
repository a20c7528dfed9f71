"""Whole or not at all: files, sets of files and folders on disk, and tensors in them."""
