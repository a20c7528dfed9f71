"""``quantlora loftq``: killed and resumed, shared by processes, bounded memory, clear errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from quantlora_loftq.command.recipe import Recipe
from quantlora_loftq.command.run import run
from safetensors.torch import load_file, save_file

from quantlora import ConfigError, MissingLibraryError, TargetError

sys.path.insert(0, str(Path(__file__).parent))
from families import make

SMALL = {"num_hidden_layers": 4}
MAIN = "from quantlora.cli import app; app()"


@pytest.fixture
def folder(tmp_path):
    make("llama", **SMALL).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def recipe(folder, **changes):
    return Recipe(
        **{"model": str(folder), "bits": 2, "iterations": 2, "rank": 4, "alpha": 8, **changes}
    )


def command(folder, out, *arguments):
    options = ["--model", folder, "--save-dir", out, "--bits", 2, "--iter", 2, "--rank", 4]
    return [
        "-c",
        "from quantlora.cli import app; app()",
        "loftq",
        *map(str, [*options, *arguments]),
    ]


def contents(result):
    files = ("model.safetensors", "loftq_init/adapter_model.safetensors")
    return [load_file(result / file) for file in files]


def same(one, other):
    pairs = zip(contents(one), contents(other), strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(folder, tmp_path):
    whole = run(recipe(folder), tmp_path / "whole")
    process = subprocess.Popen([sys.executable, *command(folder, tmp_path / "killed")])
    parts = tmp_path / "killed" / whole.name / ".parts"
    while len(list(parts.glob("*.safetensors"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in parts.glob("*.safetensors")}
    assert kept
    started = time.time_ns()
    result = run(recipe(folder), tmp_path / "killed")
    assert same(whole, result)
    assert all(stamp < started for stamp in kept.values())
    assert not parts.exists()


def test_finished_layers_are_not_done_again(folder, tmp_path, monkeypatch):
    import quantlora_loftq.command.run as module

    done, work_on = [], module.work_on

    def stop_after_five(plan, *rest):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(plan.path)
        work_on(plan, *rest)

    monkeypatch.setattr(module, "work_on", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(folder), tmp_path)
    first, done[:] = list(done), []
    monkeypatch.setattr(
        module, "work_on", lambda plan, *rest: (done.append(plan.path), work_on(plan, *rest))
    )
    run(recipe(folder), tmp_path)
    assert len(done) == 28 - 5
    assert not set(first) & set(done)


def _noted(save, done):
    def noted(parts, path, *rest):
        done.append(path)
        save(parts, path, *rest)

    return noted


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_under_torchrun_give_the_same_bits_as_one(folder, tmp_path, ranks):
    one = run(recipe(folder), tmp_path / "one")
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    arguments = command(folder, tmp_path / "many")[2:]
    subprocess.run([*torchrun, str(script), *arguments], check=True, timeout=300)
    assert same(one, tmp_path / "many" / one.name)


def test_options_that_differ_from_the_unfinished_run_are_refused(folder, tmp_path, monkeypatch):
    import quantlora_loftq.command.run as module

    monkeypatch.setattr(module, "assemble", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(recipe(folder), tmp_path)
    with pytest.raises(ConfigError, match=r"unfinished run with other options"):
        run(recipe(folder, alpha=64), tmp_path)


@pytest.mark.parametrize("which", [0, -1])
def test_weights_that_differ_from_the_unfinished_run_are_refused(
    folder, tmp_path, monkeypatch, which
):
    import quantlora_loftq.command.run as module

    monkeypatch.setattr(module, "assemble", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(recipe(folder), tmp_path / "out")
    other = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(other / "model.safetensors")
    key = [key for key in tensors if key.endswith("proj.weight")][which]
    tensors[key].view(-1)[0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    shutil.rmtree(folder)
    other.rename(folder)
    with pytest.raises(ConfigError, match="over other weights"):
        run(recipe(folder), tmp_path / "out")


def test_a_finished_result_is_not_overwritten(folder, tmp_path):
    run(recipe(folder), tmp_path)
    with pytest.raises(ConfigError, match="finished result already"):
        run(recipe(folder), tmp_path)


def test_a_weight_with_nan_is_named_and_the_others_are_kept(folder, tmp_path):
    file, key = folder / "model.safetensors", "model.layers.3.mlp.down_proj.weight"
    tensors = load_file(file)
    tensors[key][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"^model\.layers\.3\.mlp\.down_proj: .*NaN"):
        run(recipe(folder), tmp_path / "out")
    assert (tmp_path / "out" / recipe(folder).name / ".parts").is_dir()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bits": 7}, "no backend quantizes to 7 bits; offered: 2, 3, 4"),
        ({"bits": 5, "backend": "normalfloat"}, "Only support 2, 3, 4, 8 bits quantization"),
        ({"backend": "bitsandbytes_4bit"}, "Only support 2, 4, 8 bits quantization.*offers 4"),
        ({"backend": "float8"}, "unknown backend"),
        ({"iterations": 0}, "loftq_iter"),
        ({"bits_pattern": {"layers.9": 4}}, r"layers\.9"),
        ({"bits_pattern": {"(.|..|...)+m": 4}}, "takes longer than"),
        ({"bits_pattern": {"(": 4}}, "is not a valid regular expression"),
        ({"model": "/nowhere"}, "neither a folder"),
        ({"target_modules": ["q_porj"]}, "q_proj"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(folder, tmp_path, changes, text):
    with pytest.raises((ConfigError, MissingLibraryError, TargetError, ValueError), match=text):
        run(recipe(folder, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_quantized_already_is_refused(folder, tmp_path):
    result = run(recipe(folder), tmp_path)
    with pytest.raises(ConfigError, match="quantized already"):
        run(recipe(result), tmp_path / "again")


#: 7B's widths, 8 layers, a small vocabulary: the largest matrix is 11008 x 4096.
WIDE = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000,
}  # fmt: skip


def wide_model(folder):
    """Random weights of 7B's width, written shard by shard."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    config = LlamaConfig(**WIDE, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in LlamaForCausalLM(config).state_dict().items()}
    index = {}
    for number, (key, shape) in enumerate(shapes.items()):
        name = f"model-{number:03}.safetensors"
        tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
        save_file({key: tensor}, folder / name, {"format": "pt"})
        index[key] = name
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


MEASURE = """
import resource, sys
from pathlib import Path
import quantlora, transformers
from quantlora_loftq.command.recipe import Recipe
from quantlora_loftq.command.run import run
quantlora.registry()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
run(Recipe(sys.argv[1], bits=4, iterations=2, rank=16), Path(sys.argv[2]), "1GB")
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_is_below_three_of_the_largest_layer_and_an_output_shard(tmp_path):
    wide_model(tmp_path / "wide")
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "wide"), str(tmp_path / "out")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ)
    largest = 11008 * 4096 * 4  # in the float32 that it is worked on in
    peak = int(done.stdout.split()[-1])
    print(f"peak {peak / 1e6:.0f} MB, largest layer {largest / 1e6:.0f} MB")
    assert peak < 3 * largest + 10**9
