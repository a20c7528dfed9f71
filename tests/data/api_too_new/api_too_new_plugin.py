"""A plugin for a later plugin API."""

from quantlora.hookspecs import hookimpl

QUANTLORA_API = 99


@hookimpl
def quantlora_quantizers():
    return []
