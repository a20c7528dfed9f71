"""`Preparation`: what a weight format does to a model that gets adapters, and takes back after.

wrap, load_adapter     check_model, prepare_model, prepare for each layer
forward, backward      undo_repacking for each layer, where there are gradients
the last adapter       release for each layer
is deleted
unload                 release for each layer, release_model
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class Preparation:
    """The defaults do nothing.

    Where `wrap` fails, what was prepared in it is released, and then every attribute, submodule,
    parameter, buffer and hook of every module is put back as it was before: what is left to a
    format are values inside tensors and a library's own tables. All but `check_model` may be called
    again for the same model or layer, and the two that release also where nothing was prepared, or
    where preparing has failed half way.
    """

    def check_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Called once by `wrap` with its targets in this format, before anything is changed.

        Raise `BackendError` where ``model`` itself says that they cannot be right: a checkpoint
        that the installed library is known to read wrong, say. `explain` calls it too.
        """

    def prepare_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Make the model as a whole trainable through: take away a hook that unpacks it, say.

        Called by each `wrap` and `load_adapter` that puts an adapter on layers of this format which
        have none, before `prepare`; never by `explain`.

        Args:
            model: all of it, with hooks, config and the layers that get no adapter.
            layers: those that get one, by path; they are to stay the same objects.

        Raises:
            BackendError: it cannot be done.
        """

    def prepare(self, layer: nn.Module, path: str) -> None:
        """Make a layer trainable through, before its adapter comes.

        Called by `wrap` and `load_adapter` for each layer that gets an adapter, and for those in
        this format that get none, since gradients pass through them too.

        Raises:
            BackendError: it cannot be done; with ``path`` and the remedy.
        """

    def undo_repacking(self, layer: nn.Module) -> None:
        """Bring the weight back into the layout that `dequantize` reads.

        For libraries whose own forward repacks it in place. Called before forward and backward
        compare the layer's tensors, so that a layout is not taken for other values.
        """

    def release(self, layer: nn.Module) -> None:
        """Take back what `prepare` has done: the last adapter has left the model.

        Called for each layer of this format in it.
        """

    def release_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Take back what `prepare_model` has done, after `release` of every layer.

        Called by `unload`, when no LoRA layer is left: one without an adapter reads its base still.

        Args:
            layers: those that had an adapter, by path.
        """
