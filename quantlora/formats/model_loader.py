"""`ModelLoader`: a plugin that loads a kind of file itself, packed as the file has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from quantlora.files.hub import read_config
from quantlora.requirements import AnyRequirement
from quantlora.transformers_models import named_class


@dataclass(frozen=True)
class LoadRequest:
    """What `quantlora.load` was asked for.

    Args:
        source: a file, a folder or a hub id, as the user has typed it.
        backend: ``"auto"``, or the format that float layers are to be packed in.
        options: that format's settings, ``bits`` among them.
        arguments: what is meant for ``from_pretrained``: ``dtype``, ``gguf_file``, ``revision``.
        model_class: Transformers' class or auto class that is wanted; None: the loader's choice.
    """

    source: str
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model_class: Any = None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json`` of the folder, or of the repository on the hub; empty if there is none.

        Read when first asked for; a hub id's is kept in the hub's cache, where Transformers finds
        it again. A config that cannot be read is empty too: whoever loads the model says why.
        """
        return read_config(self.source, self.arguments)

    @property
    def model_id_or_path(self) -> str:
        """For ``from_pretrained``: the absolute path of a folder, or the hub id."""
        folder = Path(self.source).expanduser()
        return str(folder.resolve()) if folder.is_dir() else self.source

    @property
    def transformers_class(self) -> Any:
        """The class that was asked for, else the one that the checkpoint names."""
        return self.model_class or named_class(self.config)

    def is_packed(self, quant_method: str) -> bool:
        """Whether the checkpoint is in Transformers' ``quant_method`` and is to stay so.

        It is not where its config, or a ``quantization_config`` among `arguments`, says
        ``dequantize``.
        """
        packing, asked = self.config.get("quantization_config"), self.arguments
        settings = [_settings(packing), _settings(asked.get("quantization_config"))]
        if any(given.get("dequantize") for given in settings):
            return False
        return bool(settings[0].get("quant_method") == quant_method)


def _settings(config: Any) -> Mapping[str, Any]:
    """A ``quantization_config``, in a file or as an object of Transformers'."""
    return config if isinstance(config, Mapping) else getattr(config, "__dict__", {})


@dataclass(frozen=True)
class StoredTensor:
    """How a file has one of the model's parameters: the format's name for it, and its bytes."""

    format: str
    bytes: int


@dataclass(frozen=True)
class StoredModel:
    """What a file tells of its model before the weights are read.

    Args:
        model: it, without weights: on torch's meta device.
        tensors: by the names of the model's parameters; those not listed are not in the file.
        settings: more of the file, for people.
    """

    model: nn.Module
    tensors: Mapping[str, StoredTensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


class ModelLoader(ABC):
    """One kind of file. Subclass it, return an instance from ``quantlora_loaders``."""

    #: For messages and listings.
    name: ClassVar[str]
    #: What must be installed once a file is claimed; read from metadata only.
    requires: ClassVar[tuple[AnyRequirement, ...]] = ()

    @abstractmethod
    def claims(self, request: LoadRequest) -> bool:
        """Whether this is such a file, by its name or its first bytes; imports nothing heavy."""

    @abstractmethod
    def load(self, request: LoadRequest) -> nn.Module:
        """The model, its layers in formats that a quantizer knows.

        Nothing may be left behind where it raises: no file, no changed setting of a library.
        """

    def describe(self, request: LoadRequest) -> StoredModel | None:
        """What the file says of itself, for ``quantlora inspect``; None where it takes loading."""
        return None
