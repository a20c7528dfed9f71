"""What can be chosen: one option for each field."""
