"""Parameters that are no longer trained, and the graphs that were recorded while they were.

What a graph has recorded is what its backward computes: that is torch's contract. But a parameter
that needs no gradient by then is passed by, without a word. So where an adapter is switched off or
exchanged between forward and backward, also by another thread, its parameters still get theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantlora.formats.transforms import transformed


def stop_training(parameter: Tensor) -> None:
    """``requires_grad_(False)`` from the next forward on; recorded graphs keep their gradient."""
    if parameter.requires_grad and parameter.is_leaf and not _is_traced():
        _let_recorded_graphs_finish(parameter)
    parameter.requires_grad_(False)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or transformed()


def _let_recorded_graphs_finish(parameter: Tensor) -> None:
    """Let the node that adds up the gradient of ``parameter`` find it in need of one.

    The node lives as long as a graph that leads to it; where there is none, nothing is kept.
    """
    turned: list[bool] = []

    def before(grads: tuple[Tensor, ...]) -> None:
        if not parameter.requires_grad:
            turned.append(True)
            parameter.requires_grad_(True)

    def after(inputs: Any, outputs: Any) -> None:
        if turned:
            turned.clear()
            parameter.requires_grad_(False)

    with torch.inference_mode(False), torch.enable_grad():
        node = torch.autograd.graph.get_gradient_edge(parameter).node
    node.register_prehook(before)
    node.register_hook(after)
