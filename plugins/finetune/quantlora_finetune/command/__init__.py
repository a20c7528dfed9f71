"""The commands: one file for each; torch is imported when one runs."""
