"""From a folder or hub id to a wrapped model."""
