"""LoRA on GSM8K over quantized weights, with the options of the LoftQ recipe (arXiv:2310.08659).

    python train_gsm8k.py --model_name_or_path my-model --data_name gsm8k --output_dir out \\
        --learning_rate 3e-4 --seed 11 --num_train_epochs 6 --per_device_train_batch_size 2 \\
        --gradient_accumulation_steps 8 --max_source_length 128 --max_target_length 256 \\
        --with_tracking --report_to tensorboard

``accelerate launch train_gsm8k.py ...`` trains with several processes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from gsm8k import Problem, read_file, read_hub
from gsm8k_measure import measure
from gsm8k_options import parse_options
from gsm8k_tokens import collate, encode
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, get_scheduler

import quantlora


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, measure, save; returns what is in ``results.json``."""
    options = parse_options(arguments)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=options.report_to if options.with_tracking else None,
        project_dir=options.output_dir,
    )
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer_name or options.model_name_or_path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    check_lengths(options)
    train_set, eval_set = read_problems(options)
    model = load_model(options)
    if options.with_tracking:
        accelerator.init_trackers("gsm8k", config=plain(vars(options)))
    model, losses = train(model, tokenizer, train_set, options, accelerator)
    results = {"train_loss": losses, **measure(model, tokenizer, eval_set, options, accelerator)}
    accelerator.log({"accuracy": results["accuracy"]}, step=len(losses))
    save(model, options.output_dir, results, accelerator)
    accelerator.end_training()  # last: it takes the processes apart
    accelerator.print(
        f"exact match: {results['accuracy']:.2%} ({results['right']} of {results['measured']}); "
        f"everything is in {options.output_dir}."
    )
    return results


# -- model


def load_model(options: argparse.Namespace) -> Any:
    """The model with the adapter to train: one that is given, the model's own, or a new one."""
    model = AutoModelForCausalLM.from_pretrained(options.model_name_or_path)
    own = Path(options.model_name_or_path) / "loftq_init"
    adapter = options.adapter_name_or_path or (own if own.is_dir() else None)
    if adapter is not None:
        quantlora.load_adapter(model, adapter, is_trainable=True, backend=options.backend)
        return model
    fields = {"r": options.rank, "lora_alpha": options.lora_alpha, "task_type": "CAUSAL_LM"}
    if options.init_lora_weights != "default":
        fields["loftq_config"] = {"loftq_bits": options.bits}
    return quantlora.wrap(
        model,
        backend=options.backend,
        init_lora_weights=options.init_lora_weights,
        target_modules="all-linear",
        base_model_name_or_path=options.model_name_or_path,
        **fields,
    )


def check_lengths(options: argparse.Namespace) -> None:
    """Stop where question and answer together are longer than the model can read."""
    config = AutoConfig.from_pretrained(options.model_name_or_path).get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    wanted = options.max_source_length + options.max_target_length
    if longest is not None and wanted > longest:
        raise SystemExit(
            f"--max_source_length and --max_target_length make {wanted} tokens, and "
            f"{options.model_name_or_path} reads at most {longest}: make them smaller."
        )


# -- data


def read_problems(options: argparse.Namespace) -> tuple[list[Problem], list[Problem]]:
    """The problems to train on, and those to measure on."""
    if options.train_file is None:
        name, config = options.data_name, options.dataset_config_name
        train_set, eval_set = read_hub(name, config, "train"), read_hub(name, config, "test")
    else:
        train_set = read_file(options.train_file)
        share = math.ceil(len(train_set) * options.validation_split_percentage / 100)
        eval_set = train_set[-share:]
        train_set = train_set[:-share] if options.validation_file is None else train_set
    if options.validation_file is not None:
        eval_set = read_file(options.validation_file)
    return train_set, eval_set[: options.max_eval_samples]


# -- training


def train(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    options: argparse.Namespace,
    accelerator: Accelerator,
) -> tuple[Any, list[float]]:
    """The trained model, and the loss of each step."""
    rows = [encode(problem, tokenizer, options) for problem in problems]
    loader = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=options.per_device_train_batch_size,
        shuffle=True,
        collate_fn=partial(collate, padding=tokenizer.pad_token_id, options=options),
    )
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    per_epoch = math.ceil(len(loader) / options.gradient_accumulation_steps)
    total = options.max_train_steps or per_epoch * options.num_train_epochs
    scheduler = get_scheduler(
        options.lr_scheduler_type, optimizer, options.num_warmup_steps, num_training_steps=total
    )
    bar = tqdm(total=total, disable=not accelerator.is_main_process, desc="training")
    losses: list[float] = []
    for loss in make_steps(model, loader, optimizer, accelerator, total):
        scheduler.step()
        losses.append(loss)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        accelerator.log({"train_loss": loss, "lr": scheduler.get_last_lr()[0]}, step=len(losses))
        keep_checkpoint(model, len(losses), per_epoch, options, accelerator)
    bar.close()
    return model, losses


def make_steps(
    model: Any, loader: Any, optimizer: Any, accelerator: Accelerator, total: int
) -> Iterator[float]:
    """Make ``total`` optimizer steps, over the data as often as it takes; gives each one's loss."""
    done, parts = 0, []
    while done < total:
        for batch in loader:
            with accelerator.accumulate(model):
                model.train()
                loss = model(**batch).loss
                accelerator.backward(loss)
                parts.append(float(accelerator.reduce(loss.detach(), "mean")))
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            mean, parts, done = sum(parts) / len(parts), [], done + 1
            if not math.isfinite(mean):
                raise SystemExit(f"step {done}: the loss is {mean}. Use a lower --learning_rate.")
            yield mean
            if done == total:
                return


def keep_checkpoint(
    model: Any, step: int, per_epoch: int, options: argparse.Namespace, accelerator: Accelerator
) -> None:
    """The adapter as it is now, where ``--checkpointing_steps`` asks for it."""
    wanted = options.checkpointing_steps
    every = per_epoch if wanted == "epoch" else int(wanted or 0)
    if every and step % every == 0 and accelerator.is_main_process:
        folder = Path(options.output_dir) / f"step_{step}"
        quantlora.save_adapter(accelerator.unwrap_model(model), folder)


# -- output


def save(model: Any, folder: str, results: dict[str, Any], accelerator: Accelerator) -> None:
    """The adapter, in PEFT's format, and ``results.json`` with every answer."""
    if accelerator.is_main_process:
        quantlora.save_adapter(accelerator.unwrap_model(model), folder)
        file = Path(folder) / "results.json"
        file.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    accelerator.wait_for_everyone()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """What a tracker takes."""
    return {k: v for k, v in values.items() if isinstance(v, (bool, int, float, str))}


if __name__ == "__main__":
    main()
