"""`python -m tests.compatibility.mixtures [families ...] [--rows FILE] [--write]`: fused experts.

For the tiny config of each family that has some: are they packed, trained, merged and filed right.
The reference is the family's own forward in float64 with W + ΔW of all experts, and torch's own
gradients; outputs are compared before, after and between a step, a merge and its undoing.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

import quantlora
from quantlora.experts.packed import PackedExperts
from quantlora.exporting.model_outputs import furthest, outputs
from quantlora.layers.experts import LoraExperts, experts_layout
from tests.compatibility.families import classes, families
from tests.compatibility.isolation import import_once, run_each
from tests.compatibility.trial import HoleError, inputs_of, model_of, reason

QUESTIONS = ("pack", "train", "merge", "files")
PAGE = Path(__file__).parents[2] / "docs" / "experts.md"
BEGIN, END = "<!-- measured: mixtures -->", "<!-- end -->"
#: Of outputs, and of gradients: routers and norms compute in float32 in many families, and the
#: experts themselves in one.
TOLERANCE = 5e-6
_CLASSES = re.compile("Experts?$|MoE|Moe|GLU|Glu")


def run_mixture(family: str) -> dict[str, Any]:
    """A row: yes or the reason of a no for each question; without them it is no mixture."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    row: dict[str, Any] = {"family": family}
    try:
        base = model_of(*classes(family))
        if not (paths := expert_paths(base)):
            return row
        inputs = inputs_of(base)
    except Exception as error:
        return row | {"untried": reason(error)}
    trials = {"pack": _packs, "train": _trains, "merge": _merges, "files": _files}
    for name, ask in trials.items():
        try:
            row[name] = ask(copy.deepcopy(base), paths, inputs)
        except Exception as error:
            row[name] = f"no: {reason(error)}"
    return row


def expert_paths(model: nn.Module) -> list[str]:
    """Of the modules that hold matrices of experts as parameters of their own."""
    return [
        path
        for path, module in model.named_modules()
        if experts_layout(module) is not None
        or (
            _CLASSES.search(type(module).__name__)
            and any(_is_stack(module, p) for p in module._parameters.values())
        )
    ]


def _is_stack(module: nn.Module, parameter: Tensor | None) -> bool:
    """Whether it holds the matrices of all experts; DBRX has them one below the other."""
    least = 2 if type(module).__name__.startswith("Dbrx") else 3
    return parameter is not None and parameter.dim() >= least


def _unknown(model: nn.Module, paths: Iterable[str]) -> str:
    """The class of experts whose forward is not known here; empty where all are."""
    strange = [p for p in paths if experts_layout(model.get_submodule(p)) is None]
    return type(model.get_submodule(strange[0])).__name__ if strange else ""


def _packs(model: Any, paths: list[str], inputs: Any) -> str:
    if name := _unknown(model, paths):
        raise HoleError(f"{name} has a forward of its own")
    quantlora.quantize(model, backend="normalfloat", quantize_options={"block_size": 16})
    kinds = {type(model.get_submodule(path)) for path in paths}
    if kinds != {PackedExperts}:
        raise HoleError("its experts stay float")
    unpacked = copy.deepcopy(model)
    for path in paths:
        experts = unpacked.get_submodule(path)
        unpacked.set_submodule(path, _float(experts))
    _close(outputs(model, inputs), outputs(unpacked, inputs))
    return "yes"


def _float(experts: Any) -> nn.Module:
    from quantlora.experts.stacks_format import whole_weights

    found: nn.Module = experts.unpacked(whole_weights(experts))
    return found


def _adapted(model: Any, paths: list[str]) -> Any:
    """With random adapters on the matrices of all experts, and on nothing else."""
    names = [
        f"{path}.{name}"
        for path in paths
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False)
        if _is_stack(model.get_submodule(path), parameter)
    ]
    fields = {"target_modules": [], "target_parameters": names, "init_lora_weights": False}
    quantlora.wrap(model, r=2, **fields)
    return model.eval()


def _trains(model: Any, paths: list[str], inputs: Any) -> str:
    plain, wrapped = copy.deepcopy(model), _adapted(model, paths)
    layers = {path: wrapped.get_submodule(path) for path in paths}
    wanted = _by_hand(plain, layers, inputs)
    _close(outputs(wrapped, inputs), [one.detach() for one in wanted])
    factors = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    pairs = [_gradients(one, factors) for one in (wanted, _floats(wrapped, inputs))]
    if not any(float(gradient.abs().max()) for gradient in pairs[1]):
        raise HoleError("no gradient")
    _close(pairs[1], pairs[0])
    _close(outputs(wrapped, inputs), [one.detach() for one in wanted])
    fused = all(isinstance(layer, LoraExperts) for layer in layers.values())
    return "yes" if fused else "yes, `W + ΔW` in float"


def _by_hand(plain: Any, layers: dict[str, Any], inputs: Any) -> list[Tensor]:
    tensors = {
        f"{path}.{name}": plain.get_submodule(path).get_parameter(name) + delta
        for path, layer in layers.items()
        for name, delta in layer.deltas("default").items()
    }
    given = {"kwargs": _doubled(inputs), "tie_weights": False}  # tied ones get an adapter each
    answer = torch.func.functional_call(plain, tensors, **given)
    return _tensors(answer)


def _floats(model: Any, inputs: Any) -> list[Tensor]:
    return _tensors(model(**_doubled(inputs)))


def _tensors(answer: Any) -> list[Tensor]:
    from quantlora.exporting.model_outputs import _tensors as every

    return [one for one in every(answer) if one.is_floating_point()]


def _doubled(inputs: Any) -> dict[str, Any]:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def _gradients(answer: list[Tensor], factors: list[Tensor]) -> list[Tensor]:
    loss: Any = sum(one.nan_to_num(0, 0, 0).pow(2).sum() for one in answer if one.requires_grad)
    found = torch.autograd.grad(loss, factors, allow_unused=True)
    pairs = zip(found, factors, strict=True)
    return [torch.zeros_like(f) if gradient is None else gradient for gradient, f in pairs]


def _merges(model: Any, paths: list[str], inputs: Any) -> str:
    wrapped = _adapted(model, paths)
    wanted = outputs(wrapped, inputs)
    quantlora.merge(wrapped)
    _close(outputs(wrapped, inputs), wanted)
    quantlora.unmerge(wrapped)
    if furthest(outputs(wrapped, inputs), wanted):
        raise HoleError("unmerged, it is another model")
    _floats(wrapped, inputs)[0].nan_to_num(0, 0, 0).sum().backward()
    quantlora.merge_and_unload(wrapped)
    _close(outputs(wrapped, inputs), wanted)
    return "yes"


def _files(model: Any, paths: list[str], inputs: Any) -> str:
    plain, wrapped = copy.deepcopy(model), _adapted(model, paths)
    wanted, ways = outputs(wrapped, inputs), []
    fused = any(isinstance(wrapped.get_submodule(path), LoraExperts) for path in paths)
    for way in ("stacked", "per_expert") if fused else ("stacked",):
        with tempfile.TemporaryDirectory() as folder:
            try:
                quantlora.save_adapter(wrapped, folder, experts=way)
            except quantlora.AdapterFileError:
                continue
            again = quantlora.load_adapter(copy.deepcopy(plain), folder)
            _close(outputs(again.eval(), inputs), wanted)
            ways.append(way)
    return {1: "yes", 2: "yes, by expert too"}[len(ways)]


def _close(found: list[Tensor], wanted: list[Tensor]) -> None:
    if not (error := furthest(found, wanted)) <= TOLERANCE:
        raise HoleError(f"error {error:.1g}")


# -- the page


def candidates() -> list[str]:
    """Families whose file of Transformers speaks of experts; read, for importing takes minutes."""
    import transformers

    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    texts = [text for file in files if re.search("[Ee]xperts", text := file.read_text("utf-8"))]
    found = families().items()
    return [family for family, name in found if any(f"class {name}(" in text for text in texts)]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Those that are mixtures, then in one line what could not be tried."""
    rows = list(rows)
    tried = [row for row in rows if "pack" in row]
    lines = [["family", *QUESTIONS], ["---"] * 5]
    lines += [[row["family"], *(row[q] for q in QUESTIONS)] for row in tried]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    packed = sum(row["pack"] == "yes" for row in tried)
    body += f"\n\n{len(tried)} families were tried, and {packed} of them are packed."
    untried = [f"{r['family']} ({r.get('untried') or r['died']})" for r in rows if len(r) == 2]
    rest = f" Not tried, for want of a tiny model: {'; '.join(untried)}." if untried else ""
    return f"{body}{rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--rows", type=Path, help="keep rows here, and go on from those there")
    parser.add_argument("--write", action="store_true", help=f"the table of {PAGE.name}")
    given = parser.parse_args()
    kept = given.rows.read_text().splitlines() if given.rows and given.rows.exists() else []
    known = {row["family"]: row for row in map(json.loads, kept)}
    import_once()
    names = given.families or candidates()
    for row in run_each([name for name in names if name not in known], run_mixture):
        known[row["family"]] = row
        print(json.dumps(row), flush=True)
        if given.rows:
            with given.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if given.write:
        text = PAGE.read_text()
        mark = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
        body = table(known[name] for name in names)
        PAGE.write_text(mark.sub(lambda _: f"{BEGIN}\n{body}\n{END}", text))


if __name__ == "__main__":
    main()
