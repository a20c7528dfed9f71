"""``python -m quantlora.env``: which backend works here and, if one does not, what to type.

The report reads package metadata and a few files; it does not import torch. `machine` and `cuda`
look at the computer, `packages` at what is installed, `verdicts` asks the plugins' checks,
`report` puts it together, `tables` and `markdown` show it, and `deep` runs every backend for real.
"""
