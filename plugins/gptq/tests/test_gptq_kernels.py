"""Which layers are taken, and which kernels are refused by name, with the remedy."""

from __future__ import annotations

import pytest
import torch
from quantlora_gptq.kernels import check_kernel, is_gptq
from quantlora_gptq.requires import library_of
from torch import nn

from quantlora import BackendError, LoraLayer, registry, wrap

from .gptq_checkpoint import Recipe
from .gptq_loading import HAS_AUTO_GPTQ, OLD_GPTQMODEL, WAYS, needs_gptqmodel, needs_library

pytestmark = needs_library
needs_new = pytest.mark.skipif(OLD_GPTQMODEL, reason="this version has no such kernels")

UP = "model.layers.0.mlp.up_proj"


def _refused(layer: nn.Module, *parts: str) -> None:
    with pytest.raises(BackendError) as error:
        check_kernel(layer, "blocks.3.up")
    assert all(part in str(error.value) for part in ("blocks.3.up", *parts)), error.value


@pytest.mark.parametrize("way", WAYS)
def test_all_linear_finds_every_packed_layer(way, load) -> None:
    model = wrap(load(Recipe(), way), r=2)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 7
    assert {layer.quantizer.name for layer in layers} == {"gptq"}


def test_the_library_is_told_by_its_classes_not_by_their_names(load) -> None:
    layer = load(Recipe()).get_submodule(UP)
    renamed = type("Anything", (type(layer),), {})
    layer.__class__ = renamed
    assert library_of(layer) == ("auto_gptq" if HAS_AUTO_GPTQ else "gptqmodel")
    assert is_gptq(layer)


def test_the_same_buffers_from_elsewhere_are_not_taken(load) -> None:
    stranger, layer = nn.Module(), load(Recipe()).get_submodule(UP)
    stranger.in_features, stranger.out_features = 128, 256
    for name in ("qweight", "qzeros", "scales", "g_idx"):
        stranger.register_buffer(name, getattr(layer, name))
    assert not is_gptq(stranger)


@needs_gptqmodel
@needs_new
@pytest.mark.parametrize(
    ("module", "kernel"),
    [
        ("torch_awq", "AwqTorchLinear"),
        ("torch_aten_kernel_awq", "TorchAtenAwqLinear"),
        ("qqq", "QQQTorchLinear"),
        ("gguf", "GGUFTorchLinear"),
    ],
)
def test_layers_of_other_methods_are_not_taken(module: str, kernel: str) -> None:
    import importlib

    kernels = importlib.import_module(f"gptqmodel.nn_modules.qlinear.{module}")
    layer = getattr(kernels, kernel).__new__(getattr(kernels, kernel))
    nn.Module.__init__(layer)
    layer.in_features = layer.out_features = 128
    assert library_of(layer) == "gptqmodel"
    assert not is_gptq(layer)


@needs_gptqmodel
@needs_new
def test_the_embedding_that_is_a_subclass_of_a_linear_kernel_is_not_taken() -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchQuantEmbeddings

    layer = TorchQuantEmbeddings(
        bits=4, group_size=32, sym=True, desc_act=False, in_features=64, out_features=32
    )
    assert not is_gptq(layer)


@needs_gptqmodel
@needs_new
def test_a_loaded_inference_only_kernel_is_refused_with_its_name_and_the_remedy(load) -> None:
    model = load(Recipe(), kernel="gptq_torch_int8")
    with pytest.raises(BackendError) as error:
        wrap(model, r=2)
    parts = ("TorchInt8Linear", "layers.0.", "auto_trainable", "gptq_torch")
    assert all(part in str(error.value) for part in parts)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


@needs_gptqmodel
@pytest.mark.parametrize("kernel", ["marlin", "exllamav2", "bitblas", "machete"])
def test_kernels_of_gpus_are_taken_and_refused(kernel: str) -> None:
    """Without the GPU they cannot be built; what they are is told by their class."""
    module = pytest.importorskip(f"gptqmodel.nn_modules.qlinear.{kernel}", exc_type=ImportError)
    names = (f"{kernel}linear", f"{kernel}quantlinear")
    cls = next(cls for name, cls in vars(module).items() if name.lower() in names)
    layer = cls.__new__(cls)
    nn.Module.__init__(layer)
    layer.in_features = layer.out_features = 128
    for buffer in ("qweight", "qzeros", "scales", "g_idx"):
        layer.register_buffer(buffer, torch.zeros(1))
    assert is_gptq(layer)
    _refused(layer, cls.__name__, "inference only", "auto_trainable")


@pytest.mark.skipif(not HAS_AUTO_GPTQ, reason="needs auto-gptq")
@pytest.mark.parametrize("kind", ["exllama", "exllamav2", "marlin", "qigen"])
def test_auto_gptq_kernels_that_repack_are_refused(kind: str, load) -> None:
    """They need a GPU to be built; they name themselves in QUANT_TYPE."""
    layer = load(Recipe()).get_submodule(UP)
    layer.QUANT_TYPE = kind
    _refused(layer, kind, "disable_exllamav2=True")


@needs_gptqmodel
def test_an_adapter_of_gptqmodels_own_is_refused(load) -> None:
    layer = load(Recipe()).get_submodule(UP)
    layer.adapter = object()
    _refused(layer, "EoRA")


@needs_gptqmodel
@needs_new
def test_split_planes_are_refused(load) -> None:
    layer = load(Recipe(bits=3)).get_submodule(UP)
    layer.planar = True
    _refused(layer, "gptq_p")


def test_wrap_leaves_no_kernel_a_way_to_lock_itself(load) -> None:
    """Also after the adapters are gone and the library's own forward runs again."""
    from quantlora import unload

    model = unload(wrap(load(Recipe()), r=2))
    layer = model.get_submodule(UP).eval()
    before = layer.qweight.clone()
    with torch.no_grad():
        layer(torch.randn(2, 128).to(layer.scales.dtype))
    assert torch.equal(layer.qweight, before)
    assert registry().match(UP, layer).name == "gptq"
