"""Damaged checkpoints and impossible layers: a clear error, and the model as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantlora import BackendError, LoraLayer, wrap

from . import gptq_loading
from .gptq_checkpoint import Recipe
from .gptq_loading import needs_library

pytestmark = needs_library

UP = "model.layers.0.mlp.up_proj"

#: What is broken, and what the error says about it.
BROKEN: dict[str, tuple[Callable[[nn.Module], None], str]] = {}


def broken(message: str) -> Callable[[Callable[[nn.Module], None]], None]:
    def register(damage: Callable[[nn.Module], None]) -> None:
        BROKEN[damage.__name__] = damage, message

    return register


@broken(r"qzeros has shape \(4, 31\).* need \(4, 32\)")
def qzeros_of_the_wrong_shape(layer: nn.Module) -> None:
    layer.qzeros = layer.qzeros[:, :-1].contiguous()


@broken("qweight has 15 rows for 128 inputs")
def a_truncated_qweight(layer: nn.Module) -> None:
    layer.qweight = layer.qweight[:15].contiguous()


@broken("which is not 2, 3, 4 or 8 bits")
def bits_that_do_not_exist(layer: nn.Module) -> None:
    layer.qweight = torch.zeros(20, 256, dtype=torch.int32)


@broken("qweight is torch.int16, not int32")
def words_of_16_bits(layer: nn.Module) -> None:
    layer.qweight = layer.qweight.to(torch.int16)


@broken("all its scales are zero")
def scales_that_were_never_loaded(layer: nn.Module) -> None:
    layer.scales = torch.zeros_like(layer.scales)


@broken("NaN or infinite")
def scales_that_are_not_finite(layer: nn.Module) -> None:
    layer.scales = torch.full_like(layer.scales, float("inf"))


@broken("g_idx names groups 0 to 9, but there are 4")
def a_group_that_does_not_exist(layer: nn.Module) -> None:
    layer.g_idx = layer.g_idx.clone()
    layer.g_idx[-1] = 9


@broken("it has no g_idx")
def a_missing_buffer(layer: nn.Module) -> None:
    layer.g_idx = None


@broken("scales are not float")
def scales_that_are_integers(layer: nn.Module) -> None:
    layer.scales = layer.scales.to(torch.int32)


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_damaged_layer_is_refused_by_its_path(name: str, load) -> None:
    model, (damage, message) = load(Recipe()), BROKEN[name]
    damage(model.get_submodule(UP))
    with pytest.raises(BackendError, match=message) as error:
        wrap(model, r=2)
    assert UP in str(error.value)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_a_truncated_checkpoint_does_not_load(written, tmp_path: Path) -> None:
    folder = _copy(written, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete|metadata|header|size"):
        gptq_loading.load(folder)


def test_a_checkpoint_that_lacks_a_layer_is_refused(written, tmp_path: Path) -> None:
    """Transformers loads it with a warning and leaves the layer as the memory was."""
    folder = _copy(written, tmp_path)
    _drop(folder / "model.safetensors", UP)
    with pytest.raises(Exception, match=f"(?s){UP}.*(cannot be read|scales|qweight)"):
        wrap(gptq_loading.load(folder), r=2)


@pytest.mark.parametrize(
    ("byte", "scale", "text"),
    [
        (0, 0.0, "scales are zero"),
        (0, 0.01, "g_idx names 1 group of 4"),
        (1, 0.01, "g_idx names groups 16843009 to 16843009, but there are 4"),
        (255, 0.01, "g_idx names groups -1 to -1, but there are 4"),
        (255, float("nan"), "scales hold NaN"),
    ],
)
def test_memory_that_nothing_was_loaded_into_is_no_layer(load, byte, scale, text) -> None:
    model = load(Recipe())
    layer = model.get_submodule(UP)
    for name in ("qweight", "qzeros", "g_idx"):
        getattr(layer, name).view(torch.uint8).fill_(byte)
    layer.scales.fill_(scale)
    with pytest.raises(BackendError, match=f"{UP}: this GPTQ layer cannot be read: .*{text}"):
        wrap(model, r=2)


def test_groups_of_unequal_size_are_read_by_the_index(load) -> None:
    """What a group size that does not divide leaves: a last group that is smaller."""
    layer = load(Recipe(desc_act=True)).get_submodule(UP)
    layer.g_idx = (torch.arange(128) // 40).to(torch.int32)
    model = wrap(nn.Sequential(layer), r=2)
    assert torch.equal(model[0].dequantize(), gptq_loading.library_weight(layer))


@pytest.mark.skipif(not gptq_loading.HAS_AUTO_GPTQ, reason="a kernel of auto-gptq")
def test_an_order_that_the_kernel_ignores_is_refused(load) -> None:
    model = load(Recipe())
    layer = model.get_submodule(UP)
    layer.g_idx = layer.g_idx.flip(0)
    with pytest.raises(BackendError, match=f"{UP}.*ignores g_idx"):
        wrap(model, r=2)


def _copy(written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written(Recipe())[0], tmp_path / "copy"))


def _drop(file: Path, path: str) -> None:
    tensors: dict[str, Tensor] = load_file(file)
    kept = {name: value for name, value in tensors.items() if not name.startswith(path)}
    save_file(kept, file, metadata={"format": "pt"})
