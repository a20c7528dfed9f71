"""Quantizing the layers of a float model with GPTQModel, over calibration texts.

GPTQModel reads a model from a folder and writes one. So the float model is saved to a temporary
folder, quantized from there, saved, and its layers are loaded back as any user would load them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from quantlora import BackendError, LoraLayer, new_folder
from quantlora_gptq.kernels import is_gptq
from quantlora_gptq.packed_layer import check_settings
from quantlora_gptq.requires import LIBRARIES, wrong_reading

#: Texts, or what a tokenizer makes of them.
Calibration = Sequence[str] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Job:
    """One model to quantize: from which folder, with which settings."""

    model: nn.Module
    layers: Mapping[str, nn.Linear]
    source: Path
    settings: Mapping[str, Any]

    def write(self, target: Path, inputs: list[dict[str, Any]], batch_size: int) -> None:
        from gptqmodel import GPTQModel, QuantizeConfig

        left_out: dict[str, Any] = {f"-:^{re.escape(path)}$": {} for path in self._other_linears()}
        config = QuantizeConfig(**self.settings, dynamic=left_out or None)
        factory_kwargs = self._factory_kwargs("gptqmodel", 3)
        quantized = GPTQModel.load(str(self.source), config, **factory_kwargs)
        quantized.quantize(inputs, batch_size=batch_size)
        quantized.save(str(target))

    def read(self, target: Path) -> dict[str, nn.Module]:
        from transformers import GPTQConfig

        kernel = GPTQConfig(bits=self.settings["bits"], backend="auto_trainable")
        loaded = type(self.model).from_pretrained(  # type: ignore[attr-defined]
            target, quantization_config=kernel, **self._factory_kwargs("transformers", 5)
        )
        found = {path: loaded.get_submodule(path) for path in self.layers}
        if missed := [path for path, layer in found.items() if not is_gptq(layer)]:
            raise BackendError(
                f"GPTQModel does not quantize {', '.join(missed)} of a "
                f"{type(self.model).__name__}; leave them out with exclude_modules."
            )
        return {p: layer.to(self.layers[p].weight.device) for p, layer in found.items()}

    def _factory_kwargs(self, library: str, renamed: int) -> dict[str, Any]:
        """Device and dtype of the model, which was ``torch_dtype`` before a major version."""
        first = next(self.model.parameters())
        new = int(version(library).partition(".")[0]) >= renamed
        device = "device_map" if library == "transformers" else "device"
        return {device: str(first.device), "dtype" if new else "torch_dtype": first.dtype}

    def _other_linears(self) -> Iterator[str]:
        for path, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and path not in self.layers:
                yield path


def calibrate(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    calibration: Calibration,
    *,
    tokenizer: Any = None,
    bits: int = 4,
    group_size: int | None = None,
    sym: bool = True,
    desc_act: bool = False,
    batch_size: int = 1,
    save_to: str | Path | None = None,
) -> dict[str, nn.Module]:
    """New layers by path; ``model`` stays as it is. The arguments are told in `quantize_layers`."""
    size = check_settings(dict(layers), bits, group_size)
    _check(model, tokenizer, calibration)
    settings = {
        "bits": bits,
        "group_size": size,
        "sym": sym,
        "desc_act": desc_act,
        "format": _checkpoint_format(bits),
    }
    with TemporaryDirectory(prefix="quantlora-gptq-") as folder:
        job = _Job(model, layers, Path(folder) / "float", settings)
        target = Path(folder) / "quantized" if save_to is None else _free(Path(save_to))
        model.save_pretrained(job.source)  # type: ignore[operator]
        tokenizer.save_pretrained(job.source)
        with new_folder(target) as staging:
            job.write(staging, _inputs(calibration, tokenizer), batch_size)
        return job.read(target)


def _free(folder: Path) -> Path:
    """``folder`` to write to, told before the hours of calibration."""
    target = folder.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackendError(f"save_to={str(folder)!r} exists and is not an empty folder.")
    return target


def _check(model: nn.Module, tokenizer: Any, calibration: Calibration) -> None:
    LIBRARIES["gptqmodel"].check().require()
    if not hasattr(model, "save_pretrained"):
        raise BackendError(
            f"GPTQModel calibrates Transformers models, and this is a {type(model).__name__}; "
            f"without calibration= its layers can be rounded to nearest."
        )
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise BackendError(
            "the model has adapters already: quantize first, or quantlora.unload them."
        )
    if tokenizer is None or len(calibration) == 0:
        missing = "tokenizer" if tokenizer is None else "calibration texts"
        raise BackendError(
            f"GPTQ needs {missing}: "
            f"quantize_options={{'calibration': texts, 'tokenizer': tokenizer}}."
        )


def _inputs(calibration: Calibration, tokenizer: Any) -> list[dict[str, Any]]:
    """Tokenized texts as lists; tokenized inputs as they are."""
    return [
        dict(tokenizer(sample)) if isinstance(sample, str) else dict(sample)
        for sample in calibration
    ]


def _checkpoint_format(bits: int) -> str:
    """v1, which every library reads, unless the installed version reads its own v1 wrong."""
    wrong = wrong_reading("gptqmodel", version("gptqmodel"), "gptq", bits)
    return "gptq_v2" if wrong else "gptq"
