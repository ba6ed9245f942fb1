"""Take the first training steps of a language model in this process, and print their cost.

    python benchmarks/causal_loop.py run.json ours|libraries STEPS THREADS

`libraries` is the loop that a user would write: transformers, PEFT and AdamW on padded batches,
with labels of -100 where a token isn't scored, and autocast in bf16. Texts, batches, initial
factors and rates are those of `ours`, so that the losses can be compared.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from torch.nn.utils import clip_grad_norm_

from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.machine import status_bytes
from lowrank_study.methods.layers.lora import lora_modules
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import RunSpec, from_mapping
from lowrank_study.training.batches import Batch, padded, training_batches
from lowrank_study.training.evaluate import autocast
from lowrank_study.training.fit import Job, Session
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.optim import make_schedule
from lowrank_study.training.tracking import Tracker

CPU = torch.device("cpu")


def batches(spec: RunSpec, steps: int) -> Iterator[Batch]:
    """Return the first batches of a run."""
    settings = {"batch_size": spec.train.batch_size, "epochs": spec.train.epochs}
    every = training_batches(splits_of(spec).train, **settings, seed=spec.data_seed)
    return itertools.islice(every, steps)


def ours(spec: RunSpec, steps: int) -> tuple[list[float], list[float]]:
    """Return the losses and the seconds of our steps."""
    session = Session([Job(spec=spec, checkpoint_folder=Path(), tracker=Tracker())], CPU)
    losses, seconds = [], []
    for batch in batches(spec, steps):
        started = time.perf_counter()
        losses += session.step(batch)
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def libraries(spec: RunSpec, steps: int) -> tuple[list[float], list[float]]:
    """Return the losses and the seconds of a plain loop."""
    model = _library_model(spec)
    trained = [p for p in model.parameters() if p.requires_grad]
    # As in the Trainer, vectors are not decayed.
    matrices = [p for p in trained if p.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": spec.train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=spec.method.learning_rate,
        betas=spec.train.adam_betas,
        eps=spec.train.adam_epsilon,
    )
    total = -(-len(splits_of(spec).train) // spec.train.batch_size) * spec.train.epochs
    schedule = make_schedule(optimizer, total, spec.train)
    model.train()
    losses, seconds = [], []
    for batch in batches(spec, steps):
        started = time.perf_counter()
        labels = batch.ids_T.where(batch.scored_T, -100)
        with autocast(CPU, spec.train.precision):
            loss = model(
                input_ids=padded(batch.ids_T, batch.lengths, 0),
                attention_mask=padded(torch.ones_like(batch.ids_T), batch.lengths, 0),
                labels=padded(labels, batch.lengths, -100),
            ).loss
        loss.backward()
        clip_grad_norm_(trained, spec.train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def _library_model(spec: RunSpec) -> Any:
    folder, task = model_folder(spec.model), type(spec.task)
    model: Any = load_model(task, folder, number_of_labels=0, dropout=spec.model.dropout)
    if not isinstance(spec.method, Lora):
        return model
    start = dict(lora_modules(build_model(spec, folder, number_of_labels=0)))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.method.rank,
        lora_alpha=int(spec.method.alpha),
        lora_dropout=spec.method.dropout,
        target_modules=list(start),
    )
    model = peft.get_peft_model(model, config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, lora in start.items():
            named[f"base_model.model.{name}.lora_A.default.weight"].copy_(lora.A_RI)
    return model


def main() -> None:
    """Print losses, seconds and memory as JSON."""
    spec = from_mapping(json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(int(sys.argv[4]))
    splits_of(spec)
    interpreter = status_bytes("VmRSS")
    take = {"ours": ours, "libraries": libraries}[sys.argv[2]]
    losses, seconds = take(spec, int(sys.argv[3]))
    found = {
        "losses": losses,
        # The first step also compiles native code and fills caches.
        "examples_per_second": spec.train.batch_size * (len(seconds) - 1) / sum(seconds[1:]),
        "interpreter_bytes": interpreter,
        "peak_bytes": status_bytes("VmHWM"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
