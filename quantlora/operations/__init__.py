"""What can be done with an adapter, one operation after another, each held to float64.

`quantlora.testing` runs the list over the settings of a format, ``python -m quantlora.env --deep``
on one layer of each backend. Nothing here needs pytest.
"""
