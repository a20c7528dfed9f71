"""Ways to damage an adapter's files, or to make them hostile; each changes those in a folder."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

CONFIG, WEIGHTS, SIDE = "adapter_config.json", "adapter_model.safetensors", "quantlora.json"
#: Written by whatever gets executed.
CANARY = "executed"
#: Beside the folder: nothing in it is anybody's business.
OUTSIDE = "outside"
#: Nothing may come after it: that would write through the link.
LAST = "no file but a link, a pipe, a folder"

Change = Callable[[Path, random.Random], None]
MUTATIONS: dict[str, Change] = {}

_JUNK: list[Any] = [
    None, True, -1, 0, 3, 2**31, 2**63, 2**80, 1e308, float("nan"), float("inf"), "", "x", "é\x00",
    "../../etc/passwd", "/etc/passwd", "x" * 5000, [], [[]], [None], ["../x"], {}, {"x": {}},
    {"": 1}, [1, "a", {}], "__class__",
]  # fmt: skip
#: Each takes years on a long name, for a matcher that tries every way.
_BOMBS = [
    r"(\w+\.?)+!", r"(.*)*[!?]", r"(\w|_)+[!?]", r"(.*.*.*.*.*.*.*)+[!?]",
    r"(.*.*.*.*.*.*.*.*)\1x?(?<!\w)", r"(\w*\w*\w*\w*\w*\w*\w*)\1(?<!\w)",
]  # fmt: skip
_DTYPES = [
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16,
    torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip


def mutation(name: str) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        MUTATIONS[name] = change
        return change

    return register


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def _any_file(folder: Path, chance: random.Random) -> Path:
    return folder / chance.choice([WEIGHTS, WEIGHTS, CONFIG, SIDE])


@mutation("bits flipped")
def flip(folder: Path, chance: random.Random) -> None:
    file = _any_file(folder, chance)
    data = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


@mutation("bytes overwritten")
def overwrite(folder: Path, chance: random.Random) -> None:
    file = _any_file(folder, chance)
    data = bytearray(file.read_bytes())
    start, length = chance.randrange(len(data)), chance.randint(1, 40)
    data[start : start + length] = chance.randbytes(length)
    file.write_bytes(data)


@mutation("truncated")
def truncate(folder: Path, chance: random.Random) -> None:
    file = _any_file(folder, chance)
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


@mutation("bytes appended")
def append(folder: Path, chance: random.Random) -> None:
    with _any_file(folder, chance).open("ab") as file:
        file.write(chance.randbytes(chance.randint(1, 100)))


@mutation("oversized")
def oversize(folder: Path, chance: random.Random) -> None:
    """A file with holes: it says to be up to 4 TiB large and takes no room."""
    with _any_file(folder, chance).open("ab") as file:
        file.truncate(2 ** chance.randint(25, 42))


@mutation("large tensor that is not there")
def huge_tensor(folder: Path, chance: random.Random) -> None:
    """Header and size agree with each other; the tensor is a hole, and may exceed the memory."""
    header, _ = _header(folder / WEIGHTS)
    name = chance.choice([name for name in header if name != "__metadata__"])
    count = 2 ** chance.choice([20, 24, 33, 36, 40])
    header = {name: {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    _write(folder / WEIGHTS, header, b"")
    with (folder / WEIGHTS).open("ab") as file:
        file.truncate(file.tell() + 4 * count)


@mutation("length of the header")
def header_length(folder: Path, chance: random.Random) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = chance.choice([0, 1, 7, 2**31, 2**32, 2**40, 2**63, 2**64 - 1, chance.getrandbits(16)])
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])


@mutation("entry of the header")
def header_entry(folder: Path, chance: random.Random) -> None:
    header, data = _header(folder / WEIGHTS)
    entry = header[chance.choice(list(header))]
    name = chance.choice(list(entry))
    value = entry[name]
    if isinstance(value, list) and chance.random() < 0.7:
        value[chance.randrange(len(value))] = chance.choice([-1, 0, 1, 7, 2**31, 2**63, 2**64, 1.5])
    else:
        entry[name] = chance.choice([*_JUNK, "F32", "BF16", "F16", "I64", "Q4", [2, 2], [0, 8]])
    _write(folder / WEIGHTS, header, data)


@mutation("wrong dtype")
def dtype(folder: Path, chance: random.Random) -> None:
    chosen = chance.choice(_DTYPES)
    _change_tensors(folder, lambda name, t: t.to(chosen) if chance.random() < 0.5 else t)


@mutation("NaN and infinity")
def not_a_number(folder: Path, chance: random.Random) -> None:
    value = chance.choice([float("nan"), float("inf"), -float("inf")])
    tensors = load((folder / WEIGHTS).read_bytes())
    tensors[chance.choice(list(tensors))].view(-1)[0] = value
    (folder / WEIGHTS).write_bytes(save(tensors))


@mutation("wrong shape")
def shape(folder: Path, chance: random.Random) -> None:
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        torch.t, torch.ravel, lambda t: t[:1], lambda t: t[:, :0], lambda t: t[None],
        lambda t: torch.cat([t, t]), lambda t: t.reshape(-1)[0],
    ]  # fmt: skip
    chosen = chance.choice(changes)
    _change_tensors(folder, lambda name, t: chosen(t) if chance.random() < 0.5 else t)


@mutation("names of tensors")
def names(folder: Path, chance: random.Random) -> None:
    tensors = load((folder / WEIGHTS).read_bytes())
    old = chance.choice(list(tensors))
    new = chance.choice([
        "../../../tmp/x", "/etc/passwd", "", ".", "base_model.model.", "x" * 10_000, "\x00",
        f"../{old}", f"{old}.weight", old.replace("lora_A", "lora_B"), old.replace("lora", "dora"),
        old.replace("weight", "__class__"), "base_model.model.__dict__.lora_A.weight",
    ])  # fmt: skip
    tensors[new] = tensors[old].clone()
    if chance.random() < 0.5:
        del tensors[old]
    (folder / WEIGHTS).write_bytes(save(tensors))


@mutation("a pickle")
def pickled(folder: Path, chance: random.Random) -> None:
    """As weights, under either name, or in place of a file of JSON."""
    bomb = pickle.dumps(Bomb(folder.parent / CANARY), chance.randint(0, 5))
    name = chance.choice([WEIGHTS, "adapter_model.bin", CONFIG, SIDE])
    if name == "adapter_model.bin":
        (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(bomb)


@mutation("field of the config")
def config_field(folder: Path, chance: random.Random) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    for _ in range(chance.randint(1, 3)):
        fields[chance.choice([*fields, "layer_replication", "loftq_config", "x"])] = chance.choice(
            _JUNK
        )
    (folder / CONFIG).write_text(json.dumps(fields))


@mutation("pattern that never ends")
def bomb(folder: Path, chance: random.Random) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    pattern, name = chance.choice(_BOMBS), chance.choice(
        ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save",
         "layers_pattern"]
    )  # fmt: skip
    as_list = name in ("modules_to_save", "layers_pattern")
    fields[name] = {pattern: 2} if name.endswith("pattern") and not as_list else pattern
    fields[name] = [pattern] if as_list else fields[name]
    fields["layers_to_transform"] = [0] if name == "layers_pattern" else None
    (folder / CONFIG).write_text(json.dumps(fields))


@mutation("text of the config")
def config_text(folder: Path, chance: random.Random) -> None:
    texts = [
        b"", b"null", b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"{}", b"NaN",
        b'{"r": 1' + b"0" * 10_000 + b"}", b'"' + b"x" * 10**6 + b'"', chance.randbytes(200),
    ]  # fmt: skip
    (folder / CONFIG).write_bytes(chance.choice(texts))


@mutation("note of quantlora")
def side(folder: Path, chance: random.Random) -> None:
    note = json.loads((folder / SIDE).read_text())
    place = chance.choice([note, note["base"], *note["formats"]])
    place[chance.choice([*place, "layers", "base", "formats"])] = chance.choice(_JUNK)
    (folder / SIDE).write_text(json.dumps(note))


@mutation(LAST)
def no_file(folder: Path, chance: random.Random) -> None:
    """Links lead out of the folder: to a device that never ends, to a sound file, nowhere."""
    file = _any_file(folder, chance)
    places = ["/dev/zero", "/nowhere", f"../sound/{file.name}", f"../{OUTSIDE}"]
    kind = chance.randrange(2 + len(places))
    file.unlink()
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    else:
        file.symlink_to(places[kind - 2])


def _header(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write(file: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _change_tensors(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    tensors = load((folder / WEIGHTS).read_bytes())
    changed = {name: change(name, tensor).contiguous().clone() for name, tensor in tensors.items()}
    (folder / WEIGHTS).write_bytes(save(changed))
