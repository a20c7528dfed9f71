"""Options as other programs name them: each is taken, or answered by what does it here.

The names are those of Transformers' Trainer and TRL, PEFT, axolotl, LLaMA-Factory and Unsloth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantlora.errors import ConfigError

#: The same option under another name.
SAME = {
    "model-name-or-path": "model", "model-name": "model", "base-model": "model",
    "dataset": "data", "dataset-name": "data", "train-file": "data", "data-path": "data",
    "dataset-split": "split",
    "max-seq-length": "length", "max-length": "length", "cutoff-len": "length",
    "sequence-len": "length", "model-max-length": "length",
    "val-set-size": "held-out", "validation": "held-out", "max-eval-samples": "eval-examples",
    "lora-r": "rank", "lora-rank": "rank", "lora-dim": "rank",
    "lora-alpha": "alpha", "lora-dropout": "dropout",
    "lora-target": "target-modules", "lora-target-modules": "target-modules",
    "init-lora-weights": "init",
    "max-steps": "steps", "num-train-epochs": "epochs", "num-epochs": "epochs",
    "per-device-train-batch-size": "batch-size", "micro-batch-size": "batch-size",
    "gradient-accumulation-steps": "accumulate", "gradient-accumulation": "accumulate",
    "learning-rate": "lr", "lr-scheduler-type": "schedule", "lr-scheduler": "schedule",
    "scheduler": "schedule", "warmup-steps": "warmup", "num-warmup-steps": "warmup",
    "output-dir": "output", "save-steps": "save-every", "torch-dtype": "dtype",
    "quantization-bit": "bits",
}  # fmt: skip
#: Switches, and the choice that each stands for.
SWITCHES = {
    "load-in-4bit": ("--bits", "4"),
    "load-in-8bit": ("--bits", "8"),
    "bf16": ("--dtype", "bfloat16"),
    "fp16": ("--dtype", "float16"),
    "use-dora": ("--variant", "dora"),
    "resume-from-checkpoint": ("--resume",),
}
#: What there is no option for, and what to do.
ELSEWHERE = {
    "packing": "texts are always cut into full windows of --length; answers stand alone",
    "sample-packing": "texts are always cut into full windows of --length; answers stand alone",
    "eval-steps": "it measures before and after the training, on --eval-examples examples",
    "evaluation-strategy": "it measures before and after the training",
    "eval-strategy": "it measures before and after the training",
    "logging-steps": "every step is in the report; --report-to tensorboard shows them meanwhile",
    "overwrite-output-dir": "nothing is written over: name another --output",
    "do-train": "it always trains",
    "push-to-hub": "afterwards: hf upload YOUR/NAME OUTPUT",
    "hub-model-id": "afterwards: hf upload YOUR/NAME OUTPUT",
    "optim": "it trains by AdamW; with another one, wrap the model from Python (docs/training.md)",
    "deepspeed": "start it by `accelerate launch -m quantlora finetune`",
    "fsdp": "start it by `accelerate launch -m quantlora finetune`",
    "use-rslora": "from Python: quantlora.wrap(model, use_rslora=True)",
    "flash-attn": "Transformers chooses the attention; from Python: attn_implementation=",
    "wandb-project": "--report-to tensorboard, or a Trainer of your own (docs/training.md)",
}
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


def translated(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with our names for the options.

    Raises:
        ConfigError: there is no such option here; it says what does the same.
    """
    return list(_translate(list(arguments)))


def _translate(left: list[str]) -> Iterator[str]:
    while left:
        argument = left.pop(0)
        option, equals, value = argument.partition("=")
        name = option[2:].replace("_", "-") if option.startswith("--") else ""
        if name in ELSEWHERE:
            raise ConfigError(f"there is no option {option}: {ELSEWHERE[name]}.")
        if name in SWITCHES:
            if not equals and left and left[0].lower() in (*_YES, *_NO):
                value = left.pop(0)
            yield from () if value.lower() in _NO else SWITCHES[name]
        else:
            yield f"--{SAME[name]}{equals}{value}" if name in SAME else argument
