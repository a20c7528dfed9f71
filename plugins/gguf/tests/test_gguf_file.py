"""Files that are damaged or lie: an error that names file, tensor and reason, before anything."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from quantlora_gguf import GgufFile

import quantlora

gguf = pytest.importorskip("gguf")

Q8_0, F32 = 8, 0


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, *sizes: int, number: int = F32, offset: int = 0) -> bytes:
    count = struct.pack("<I", len(sizes))
    return text(name) + count + struct.pack(f"<{len(sizes)}QIQ", *sizes, number, offset)


def file_of(*entries: bytes, data: int = 4096, kv: bytes = b"", count: int = 0, version=3) -> bytes:
    architecture = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), 1 + count)
    whole = head + architecture + kv + b"".join(entries)
    return whole + bytes(-len(whole) % 32) + bytes(data)


def array_of(kind: int, count: int) -> bytes:
    return text("tokenizer.x") + struct.pack("<IIQ", 9, kind, count)


GOOD = entry("a.weight", 64, 4, number=Q8_0)
BAD = {
    "no magic": (b"PK\3\4" + file_of(GOOD)[4:], "does not begin with GGUF"),
    "empty": (b"", "it is empty"),
    "an old version": (file_of(GOOD, version=1), "GGUF version 1"),
    "the other byte order": (file_of(GOOD, version=0x03000000), "big-endian"),
    "cut off in the tensors": (file_of(GOOD, data=100), r"a\.weight lacks 172 of its 272 bytes"),
    "cut off in the list": (file_of(GOOD)[:100], r"ends within"),
    "too many tensors": (file_of(GOOD)[:8] + b"\xff" * 7 + b"\0" + file_of(GOOD)[16:], "."),
    "a name of 2 ** 60 letters": (
        file_of(struct.pack("<Q", 1 << 60) + b"a"), "ends within the list of tensors",
    ),
    "a vocabulary of 2 ** 60": (
        file_of(GOOD, kv=array_of(8, 1 << 60), count=1), r"ends within metadata 'tokenizer\.x'",
    ),
    "arrays in arrays for ever": (
        file_of(GOOD, kv=array_of(9, 1) + struct.pack("<IQ", 9, 1) * 9, count=1), "array of type 9",
    ),
    "a value of no type": (
        file_of(GOOD, kv=text("x") + struct.pack("<I", 99), count=1), "value of type 99",
    ),
    "an offset behind the end": (
        file_of(entry("b", 64, 4, number=Q8_0, offset=1 << 50)), "b lacks 272 of its 272 bytes",
    ),
    "a shape beyond all": (file_of(entry("c", 1 << 40, 1 << 40)), "tensor c has the shape"),
    "no elements": (file_of(entry("d", 0, 4)), "tensor d has the shape"),
    "five dimensions": (file_of(entry("e", 1, 1, 1, 1, 1)), "tensor e has 5 dimensions"),
    "half a block": (file_of(entry("f", 48, 4, number=Q8_0)), "tensor f has rows of 48"),
    "one name twice": (file_of(GOOD, GOOD), r"has tensor a\.weight twice"),
    "a type that is not read": (file_of(entry("g", 256, 4, number=16)), "g has type IQ2_XXS"),
    "a type that is not there": (file_of(entry("h", 256, 4, number=999)), "h has type 999"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(case, tmp_path: Path):
    content, reason = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(quantlora.ConfigError, match=rf"(?s)bad\.gguf.*{reason}"):
        GgufFile(path)


@pytest.mark.parametrize("cut", range(0, 220, 7))
def test_a_header_cut_off_anywhere_is_refused(cut, tmp_path: Path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(file_of(GOOD, data=0)[:cut])
    with pytest.raises(quantlora.ConfigError, match=r"cut\.gguf"):
        GgufFile(path)


def test_tensors_are_read_as_they_were_written(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    values, norm = torch.randn(4, 64).numpy(), torch.randn(5).numpy()
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("w", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("norm", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    assert torch.equal(file.packed("w"), torch.from_numpy(packed))
    assert torch.equal(file.values("norm"), torch.from_numpy(norm))
    assert file.architecture == "llama"


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path):
    path = tmp_path / "y.gguf"
    path.write_bytes(file_of(GOOD))
    file = GgufFile(path)
    path.write_bytes(file_of(GOOD)[:-4000])
    with pytest.raises(quantlora.ConfigError, match="has become shorter"):
        file.packed("a.weight")
