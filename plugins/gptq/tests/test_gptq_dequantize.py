"""`dequantize` is bit-equal to the library's own, and to what the checkpoint holds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from quantlora_gptq.requires import library_of, wrong_reading

from quantlora import registry

from .gptq_checkpoint import Recipe
from .gptq_loading import (
    HAS_AUTO_GPTQ,
    HAS_GPTQMODEL,
    OLD_GPTQMODEL,
    WAYS,
    library_weight,
    needs_library,
)

pytestmark = needs_library

BITS, GROUPS, BOTH = (2, 3, 4, 8), (16, 32, 64, 128, -1), (False, True)
ALL = [Recipe(*values) for values in product(BITS, GROUPS, BOTH, BOTH, BOTH)]
#: Every pair of settings occurs in these; every width and switch in the few.
SOME = ALL[3::7]
FEW = SOME[::5]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def known_wrong(recipe: Recipe) -> bool:
    """Whether this environment's library is known to read the checkpoint wrong."""
    library, found = ("auto_gptq", "0.7.1") if HAS_AUTO_GPTQ else ("gptqmodel", "7.6.0")
    stored_as = "gptq_v2" if recipe.v2 else "gptq"
    found = "2.2.0" if OLD_GPTQMODEL else found
    return wrong_reading(library, found, stored_as, recipe.bits) is not None


def marked(recipes: list[Recipe]) -> list:
    slow = pytest.mark.slow
    return [pytest.param(r, marks=() if r in FEW else slow, id=str(r)) for r in recipes]


@pytest.mark.parametrize("recipe", marked(ALL))
def test_dequantize_is_bit_equal_to_the_library(recipe, load) -> None:
    model = load(recipe)
    for layer in model.modules():
        if library_of(layer) is not None:
            for dtype in DTYPES:
                layer.scales = layer.scales.to(dtype)
                assert torch.equal(
                    registry().match("", layer).dequantize(layer), library_weight(layer)
                )


@pytest.mark.parametrize("recipe", marked(SOME))
def test_dequantize_gives_what_the_checkpoint_holds(recipe, load, written) -> None:
    model, (_, packed) = load(recipe), written(recipe)
    for path, weight in packed.items():
        layer = model.get_submodule(path)
        found = registry().match(path, layer).dequantize(layer)
        right = torch.equal(found, weight.dense(found.dtype))
        assert right != known_wrong(recipe)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_loader_gives_the_same_codes(way, dtype, load, written) -> None:
    recipe = Recipe(desc_act=True, bias=True)
    model, (_, packed) = load(recipe, way, dtype=dtype), written(recipe)
    for path, weight in packed.items():
        layer = model.get_submodule(path)
        found = registry().match(path, layer).dequantize(layer)
        assert torch.equal(found, weight.dense(found.dtype))


@pytest.mark.skipif(not HAS_AUTO_GPTQ, reason="needs auto-gptq")
def test_auto_gptq_zero_points_wrap_where_its_kernel_wraps_them(load) -> None:
    model = load(Recipe(sym=False))
    for layer in model.modules():
        if library_of(layer) is not None:
            layer.qzeros = torch.full_like(layer.qzeros, -1)  # v1's way to store 0, or 16
            assert torch.equal(registry().match("", layer).dequantize(layer), library_weight(layer))


def test_the_group_index_is_told_only_where_groups_are_not_neighbours(load) -> None:
    for desc_act in (False, True):
        layer = load(Recipe(desc_act=desc_act)).get_submodule("model.layers.0.mlp.up_proj")
        quantizer = registry().match("", layer)
        assert (quantizer.group_index(layer) is None) != desc_act
        assert quantizer.group_size(layer) == 32


def test_the_affine_view_is_the_weight(load) -> None:
    layer = load(Recipe(desc_act=True, sym=False)).get_submodule("model.layers.0.mlp.up_proj")
    quantizer = registry().match("", layer)
    assert torch.equal(quantizer.affine(layer).dequantize(), quantizer.dequantize(layer))


def test_one_of_the_libraries_is_under_test() -> None:
    assert HAS_GPTQMODEL or HAS_AUTO_GPTQ
