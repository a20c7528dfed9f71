"""`load_adapter` on damaged and hostile files: an error of ours, or what the files say; no more."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

import quantlora
from tests.tools.reliability.forks import run
from tests.tools.reliability.mutations import CANARY, CONFIG, LAST, MUTATIONS, OUTSIDE, WEIGHTS
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import same, with_values

#: Seconds that one file may take.
PATIENCE = 5.0
#: Bytes that a process may have: a file that says to be larger must not be believed.
MEMORY = 16 * 2**30
#: Attempts in one process; where that dies, each is tried again in its own.
TOGETHER = 250
#: What loading an adapter never does.
_FORBIDDEN = (
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
    "socket.connect", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate",
)  # fmt: skip
_WRITING = 0o3  # O_WRONLY | O_RDWR

Job = tuple[str, int]


def mutated_files(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """Each kind of mutation in turn; a third of them on top of another one."""
    save(place / "sound")
    (place / OUTSIDE).write_text("somebody's own")
    names = list(MUTATIONS)
    jobs = [(names[number % len(names)], chance.getrandbits(48)) for number in range(count)]
    for start in range(0, count, TOGETHER):
        some = jobs[start : start + TOGETHER]
        ended = run(lambda some=some: attempts(place, some), patience=60.0)
        yield from ended.value if ended.value is not None else _singly(place, some)


def _singly(place: Path, jobs: list[Job]) -> Iterator[Outcome]:
    for job in jobs:
        ended = run(lambda job=job: attempts(place, [job]), patience=4 * PATIENCE)
        yield from ended.value or [Outcome(job[0], "", f"{ended.error} (seed {job[1]})")]


def model() -> nn.Module:
    """Names long enough for a pattern to take years."""
    torch.manual_seed(0)
    layers = nn.Sequential()
    layers.add_module("a_rather_long_name_for_a_projection_of_queries", nn.Linear(8, 8))
    layers.add_module("a_norm", nn.LayerNorm(8))
    layers.add_module("a_rather_long_name_for_a_projection_of_outputs", nn.Linear(8, 8))
    return layers


def save(folder: Path) -> None:
    quantlora.save_adapter(with_values(quantlora.wrap(model(), r=2), 1), folder)


def attempts(place: Path, jobs: list[Job]) -> list[Outcome]:
    """In a child: damage, load, look."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_late)
    guard = Guard()
    found = []
    for name, seed in jobs:
        folder = place / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "sound", folder)
        chance = random.Random(seed)
        others = [one for one in MUTATIONS if one != LAST]
        first = [chance.choice(others)] if chance.random() < 1 / 3 else []
        for mutation in (*first, name):
            with suppress(Exception):  # the first has left nothing that the second could change
                MUTATIONS[mutation](folder, chance)
        end, fault = load_and_look(folder, guard, chance)
        if (place / CANARY).exists():
            fault = "code was executed"
        found.append(Outcome(name, end, fault and f"{fault} (seed {seed})"))
    return found


def _too_late(*_: object) -> None:
    raise TimeoutError(f"it took more than {PATIENCE:g} s")


class Guard:
    """Notes what is done while it is on that must not be; an audit hook, so nothing gets past."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and bool(arguments[2] & _WRITING)
        if writes or event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments[:1]}")

    def __enter__(self) -> None:
        self.seen.clear()
        self.on = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.on = False


def load_and_look(folder: Path, guard: Guard, chance: random.Random) -> tuple[str, str]:
    """How loading ended, and what is wrong with that."""
    subject, adapter = model(), "default"
    if chance.random() < 1 / 3:  # beside an adapter that is there
        subject, adapter = quantlora.wrap(subject, r=3, adapter_name="first"), "second"
    before = state(subject)
    try:
        with guard:
            quantlora.load_adapter(subject, folder, adapter)
    except quantlora.QuantloraError:
        fault = "" if unchanged(before, state(subject)) else "half loaded"
        return "refused", fault or ", ".join(guard.seen)
    except BaseException as error:
        return "", f"{type(error).__name__}: {str(error)[:200]}"
    fault = ", ".join(guard.seen) or wrongly_loaded(subject, folder, adapter)
    if any((folder / name).is_symlink() for name in (CONFIG, WEIGHTS)):
        fault = "a link that leads out of the folder was followed"
    return "loaded as the file says", fault


def state(subject: nn.Module) -> dict[str, Any]:
    """All that a half-loaded adapter could leave behind."""
    modules = list(subject.named_modules())
    return {
        "modules": [(path, id(module), module.training) for path, module in modules],
        "attributes": [sorted(vars(module)) for _, module in modules],
        "trained": [p.requires_grad for p in subject.parameters()],
        "tensors": {name: tensor.clone() for name, tensor in subject.state_dict().items()},
    }


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    facts = ("modules", "attributes", "trained")
    return all(before[f] == after[f] for f in facts) and same(before["tensors"], after["tensors"])


def wrongly_loaded(subject: nn.Module, folder: Path, adapter: str) -> str:
    """What the model has that is not what the files say, by other readers than ours."""
    tensors = load((folder / WEIGHTS).read_bytes())
    config = json.loads((folder / CONFIG).read_bytes())
    layers = [(p, layer) for p, layer in quantlora.lora_layers(subject) if adapter in layer.r]
    if not layers:
        return "no layer has the adapter"
    for path, layer in layers:
        ranks = {config["r"], *(config.get("rank_pattern") or {}).values()}
        if layer.r[adapter] not in ranks:
            return f"{path} has rank {layer.r[adapter]}"
        for name, tensor in layer.adapter_tensors(adapter).items():
            value = tensors.get(f"base_model.model.{path}.{name}")
            if value is None or not torch.equal(value.to(tensor.dtype), tensor.detach()):
                return f"{path}.{name} is not what the file has"
    fresh = model().state_dict()
    kept = {n.replace(".base_layer", ""): t for n, t in subject.state_dict().items()}
    return "" if same(fresh, {n: kept[n] for n in fresh}) else "the base has changed"
