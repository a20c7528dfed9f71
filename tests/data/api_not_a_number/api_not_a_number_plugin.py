"""A plugin that names its API by a word."""

from quantlora.hookspecs import hookimpl

QUANTLORA_API = "newest"


@hookimpl
def quantlora_quantizers():
    return []
