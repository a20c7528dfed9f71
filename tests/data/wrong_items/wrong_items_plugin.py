"""A plugin whose hook returns a list of something else."""

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_layer_wrappers():
    return ["lora"]
