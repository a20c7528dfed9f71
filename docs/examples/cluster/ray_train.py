"""A run on Ray Train: Trainer on every worker; a lost worker starts them again at the checkpoint.

python ray_train.py MODEL DATA.jsonl OUTPUT --workers 2 [--gpu]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def rows_of(file: str, tokenizer: Any) -> list[dict[str, Any]]:
    """``{"prompt": ..., "completion": ...}`` in each line; the prompt's tokens are not learned."""
    rows = []
    for line in Path(file).read_text("utf-8").splitlines():
        example = json.loads(line)
        prompt = tokenizer(example["prompt"])["input_ids"]
        answer = tokenizer(example["completion"], add_special_tokens=False)["input_ids"]
        labels = [-100] * len(prompt) + answer
        rows.append({"input_ids": prompt + answer, "labels": labels})
    return rows


def train(settings: dict[str, Any]) -> None:
    """What every worker does."""
    import ray.train
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )
    from transformers.trainer_utils import get_last_checkpoint

    import quantlora

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"])
    quantlora.wrap(model, backend=settings["backend"], r=16)
    folder = Path(settings["output"], "checkpoints")
    arguments = TrainingArguments(
        str(folder), max_steps=settings["steps"], save_steps=settings["save_every"],
        learning_rate=1e-3, report_to="none", use_cpu=not settings["gpu"], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=rows_of(settings["data"], tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if ray.train.get_context().get_world_rank() == 0:
        quantlora.save_adapter(model, settings["output"])
    ray.train.report({"loss": trainer.state.log_history[-1]["train_loss"], "resumed": last or ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "data", "output"):
        parser.add_argument(name)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save_every", type=int, default=10)
    parser.add_argument("--backend", default="normalfloat")
    given = parser.parse_args()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    paths = {name: str(Path(getattr(given, name)).resolve()) for name in ("data", "output")}
    trainer = TorchTrainer(
        train,
        train_loop_config={**vars(given), **paths},
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpu),
        run_config=RunConfig(
            storage_path=f"{paths['output']}/ray", failure_config=FailureConfig(max_failures=3)
        ),
    )
    print(trainer.fit().metrics)


if __name__ == "__main__":
    main()
