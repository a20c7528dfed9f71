"""The six hooks a plugin may implement. This is the whole surface between core and plugins.

A hook returns objects; the core collects them all and decides in plain Python by their names,
never by the order of plugins. A complete plugin is one module and one entry point:

    # my_plugin.py
    from quantlora.hookspecs import hookimpl

    @hookimpl
    def quantlora_quantizers():
        from my_plugin_layers import MyQuantizer
        return [MyQuantizer()]

    # pyproject.toml
    [project.entry-points.quantlora]
    my-plugin = "my_plugin"

Import heavy libraries inside the hooks, or deeper: the entry point itself is loaded by everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from quantlora.checks import Check
    from quantlora.formats.model_loader import ModelLoader
    from quantlora.formats.quantizer import Quantizer
    from quantlora.initializers.initializer import Initializer
    from quantlora.layers.layer import LoraLayer

#: Name of the entry-point group, and of the pluggy project.
GROUP = "quantlora"

#: A plugin may state the API it was written for: ``QUANTLORA_API = 1`` in its module.
API_VERSION = 1

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def quantlora_quantizers() -> Iterable[Quantizer]:
    """Weight formats this plugin can read (and perhaps write).

    @hookimpl
    def quantlora_quantizers():
        return [MyQuantizer()]
    """
    raise NotImplementedError


@hookspec
def quantlora_layer_wrappers() -> Iterable[type[LoraLayer]]:
    """Variants of the LoRA layer: subclasses of `LoraLinear` with a `variant` of their own.

    @hookimpl
    def quantlora_layer_wrappers():
        return [MyVariantLinear]
    """
    raise NotImplementedError


@hookspec
def quantlora_initializers() -> Iterable[Initializer]:
    """Ways to choose the first A and B, picked by ``init_lora_weights="<name>"``.

    @hookimpl
    def quantlora_initializers():
        return [MyInitializer()]
    """
    raise NotImplementedError


@hookspec
def quantlora_loaders() -> Iterable[ModelLoader]:
    """Kinds of files that `quantlora.load` gives to this plugin.

    @hookimpl
    def quantlora_loaders():
        return [MyLoader()]
    """
    raise NotImplementedError


@hookspec
def quantlora_checks() -> Iterable[Check]:
    """What ``python -m quantlora.env`` should look at. Must not import torch: the report is fast.

    @hookimpl
    def quantlora_checks():
        return [Check("my_format", requires=(Requirement("my-lib>=1.2"),))]
    """
    raise NotImplementedError


@hookspec
def quantlora_commands() -> Iterable[Callable[..., Any]]:
    """Commands ``quantlora <name>``: functions as typer takes them, by the function's name.

    @hookimpl
    def quantlora_commands():
        from my_plugin_cli import my_tool  # imports torch inside its body only
        return [my_tool]
    """
    raise NotImplementedError


#: Names of all hooks, in the order of this page.
HOOKS = (
    "quantlora_quantizers",
    "quantlora_layer_wrappers",
    "quantlora_initializers",
    "quantlora_loaders",
    "quantlora_checks",
    "quantlora_commands",
)
