"""A plugin whose check is no `Check`."""

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_checks():
    return [{"backend": "wrong_check"}]
