"""Train a sweep as a user would write it: with transformers' Trainer and PEFT, run after run.

    python benchmarks/peft_loop.py runs.json out.json [--same-precision] [--tuned] [--same-start]

`runs.json` is a list of run specifications (`spec.to_mapping`). Data, splits, steps, batch size,
rates, schedule and epochs come from the specifications. Everything else is the Trainer's default.
`--same-precision` takes the precision from them too; the Trainer's default is fp32. `--tuned` also
follows its documentation's advice for speed: batches of texts of similar length, and larger
batches for evaluation. As in the suite, each run is evaluated
on validation and test and saved, and the singular values of its updates are computed. `out.json`
gets each run's test accuracy, seconds and memory.

With `--same-start`, head, factors, data order and schedule (the Trainer's own begins with a step at
rate zero) are the suite's for that seed. A difference in accuracy then comes from the programs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import load_file
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lowrank_study.data.splits import Split, load_splits
from lowrank_study.data.tokenizer import load_tokenizer
from lowrank_study.loaded import model_folder
from lowrank_study.machine import status_bytes
from lowrank_study.methods.layers.lora import lora_modules
from lowrank_study.methods.layers.modules import head_names, target_modules
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import RunSpec, from_mapping
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.batches import training_order
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.optim import make_schedule


class Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows of a split in the Trainer's format."""

    def __init__(self, split: Split) -> None:
        self.rows = [
            {"input_ids": split.tokens(row).tolist(), "labels": int(split.labels[row])}
            for row in range(len(split))
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of correct predictions."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class InOurOrder(Trainer):
    """The Trainer on the suite's batches and schedule."""

    order: list[int]
    spec: RunSpec

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the suite's schedule."""
        chosen = optimizer or self.optimizer
        self.lr_scheduler = make_schedule(chosen, num_training_steps, self.spec.train)
        return self.lr_scheduler


def start_alike(model: Any, spec: RunSpec, base_folder: Path, *, labels: int) -> None:
    """Give a PEFT model the suite's initial head and factors for this run."""
    ours = build_model(spec, base_folder, number_of_labels=labels)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, lora in lora_modules(ours):
            named[f"base_model.model.{name}.lora_A.default.weight"].copy_(lora.A_RI)
        for head in head_names(ours):
            for name, value in ours.get_submodule(head).named_parameters():
                path = f"base_model.model.{head}.modules_to_save.default.{name}"
                named[path].copy_(value)


def train(
    spec: RunSpec,
    folder: Path,
    *,
    same_precision: bool = False,
    tuned: bool = False,
    same_start: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, evaluate, save and measure one run; `same_start` is for LoRA and one epoch."""
    interpreter = status_bytes("VmRSS")
    started = time.perf_counter()
    base_folder = model_folder(spec.model)
    splits = load_splits(spec.task, base_folder)
    set_seed(spec.seed)
    model: Any = load_model(
        Classification, base_folder, number_of_labels=len(splits.labels), dropout=spec.model.dropout
    )
    if isinstance(spec.method, Lora):
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=spec.method.rank,
            lora_alpha=int(spec.method.alpha),
            lora_dropout=spec.method.dropout,
            target_modules=target_modules(model, spec.model, spec.method.target),
        )
        model = peft.get_peft_model(model, config)
        if same_start:
            start_alike(model, spec, base_folder, labels=len(splits.labels))
    options: dict[str, Any] = {"bf16": False}
    if same_precision or tuned:
        options["bf16"] = spec.train.precision == "bf16"
    if tuned:
        options |= {
            "train_sampling_strategy": "group_by_length",
            "per_device_eval_batch_size": 64,
        }
    tokenizer = load_tokenizer(base_folder)
    trainer = (InOurOrder if same_start else Trainer)(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=spec.train.batch_size,
            num_train_epochs=spec.train.epochs,
            learning_rate=spec.method.learning_rate,
            weight_decay=spec.train.weight_decay,
            warmup_steps=spec.train.warmup_fraction,
            max_grad_norm=spec.train.max_grad_norm,
            seed=spec.seed,
            use_cpu=device == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        ),
        train_dataset=Texts(splits.train),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    if isinstance(trainer, InOurOrder):
        [order] = training_order(len(splits.train), epochs=spec.train.epochs, seed=spec.data_seed)
        trainer.order, trainer.spec = order.tolist(), spec
    starting = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    peak = status_bytes("VmHWM")
    trainer.evaluate(Texts(splits.validation))  # type: ignore[arg-type]
    test = trainer.evaluate(Texts(splits.test))  # type: ignore[arg-type]
    evaluated = time.perf_counter()
    model.save_pretrained(folder / "saved")
    values = singular_values(folder / "saved", base_folder, spec)
    return {
        "run_id": spec.run_id,
        "test_score": test["eval_accuracy"],
        "matrices": len(values),
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_seconds": trained - started,
        "examples_per_second": spec.train.epochs * len(splits.train) / (trained - starting),
        "interpreter_bytes": interpreter,
        "peak_bytes": peak,
        "evaluate_seconds": evaluated - trained,
        "seconds": time.perf_counter() - started,
    }


def singular_values(saved: Path, base_folder: Path, spec: RunSpec) -> dict[str, np.ndarray]:
    """Decompose every update as a notebook does: dense difference or product, then SVD."""
    deltas: dict[str, np.ndarray] = {}
    if isinstance(spec.method, Lora):
        weights = load_file(saved / "adapter_model.safetensors")
        for name, A in weights.items():
            if name.endswith("lora_A.weight"):
                B = weights[name.replace("lora_A", "lora_B")]
                deltas[name] = (spec.method.scaling * (B @ A)).numpy()
    else:
        before = load_file(base_folder / "model.safetensors")
        for name, after in load_file(saved / "model.safetensors").items():
            stem = name.removeprefix("bert.")
            if stem in before and after.ndim == 2:
                deltas[name] = (after - before[stem].float()).numpy()
    return {name: np.linalg.svd(delta, compute_uv=False) for name, delta in deltas.items()}


def main() -> None:
    """Train all runs of a file, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--same-precision", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--same-start", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    specs = [from_mapping(mapping) for mapping in json.loads(arguments.runs.read_text())]
    options = {
        name: value for name, value in vars(arguments).items() if name not in ("runs", "out")
    }
    results = []
    for spec in specs:
        with tempfile.TemporaryDirectory() as folder:
            results.append(train(spec, Path(folder), **options))
        print(json.dumps(results[-1]), flush=True)
    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
