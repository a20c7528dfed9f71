"""The public names of quantlora_loftq."""
