"""Suggest the setting that a user probably meant by an unknown one.

>>> unknown_setting("lr", "0.1", valid=["method.learning_rate", "seed"])
'lr is not a setting of this command: did you mean method.learning_rate=0.1?'
"""

import difflib
from collections.abc import Collection

_SYNONYMS = {
    "lr": "method.learning_rate",
    "alpha": "method.alpha",
    "lora_alpha": "method.alpha",
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_dropout": "method.dropout",
    "target_modules": "method.target",
    "modules": "method.target",
    "use_rslora": "method.scaling",
    "peft": "method.peft_type",
    "epoch": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "num_train_epochs": "trainer.epochs",
    "bs": "trainer.batch_size",
    "batch": "trainer.batch_size",
    "per_device_train_batch_size": "trainer.batch_size",
    "train_batch_size": "trainer.batch_size",
    "wd": "trainer.weight_decay",
    "warmup_ratio": "trainer.warmup_fraction",
    "warmup": "trainer.warmup_fraction",
    "gradient_clipping": "trainer.max_grad_norm",
    "head_lr": "trainer.head_learning_rate",
    "fp16": "trainer.precision",
    "bf16": "trainer.precision",
    "dtype": "trainer.precision",
    "max_seq_length": "task.max_length",
    "max_seq_len": "task.max_length",
    "max_len": "task.max_length",
    "dataset": "task",
    "dataset_name": "task.source",
    "data": "task.source",
    "train_file": "task.train",
    "test_file": "task.test",
    "validation_file": "task.validation",
    "label": "task.label_column",
    "text": "task.text_columns",
    "text_column": "task.text_columns",
    "sep": "task.separator",
    "delimiter": "task.separator",
    "model_name_or_path": "model.source",
    "base_model": "model.source",
    "model_id": "model.source",
    "pretrained": "before",
    "finetuned": "after",
    "tuned": "after",
    "lora": "adapter",
    "adapter_path": "adapter",
    "output_dir": "results",
    "output": "out",
    "outdir": "out",
    "out_dir": "out",
    "seeds": "seed",
    "gpu": "device",
    "num_workers": "workers",
    "jobs": "workers",
    "experiment": "sweep",
    "report_to": "tracker",
    "k": "ranks",
}
"""Names that other projects use, and common short ones, with the setting here."""


def unknown_setting(key: str, value: str, valid: Collection[str], *, of: str = "") -> str:
    """Return a message on an unknown setting that suggests the closest ones.

    Args:
        valid: The full names of all valid settings.
        of: The choice that decides which settings are valid, as in `method=full`.
    """
    owner = of or "this command"
    found = nearest(key, valid)
    if found:
        guess = " or ".join(f"{name}={value}" if value else name for name in found)
        return f"{key} is not a setting of {owner}: did you mean {guess}?"
    part = key.rpartition(".")[0]
    siblings = [name for name in valid if name.rpartition(".")[0] == part] or list(valid)
    return f"{key} is not a setting of {owner}: valid are {', '.join(sorted(siblings))}"


def nearest(key: str, valid: Collection[str]) -> list[str]:
    """Return the settings closest to a key; empty if none is close."""
    last = key.replace("-", "_").lower().rpartition(".")[2]
    if same := [name for name in valid if name.rpartition(".")[2] == last]:
        return sorted(same)
    if _SYNONYMS.get(last) in valid:
        return [_SYNONYMS[last]]
    lasts = {name.rpartition(".")[2]: name for name in valid}
    lasts |= {synonym: name for synonym, name in _SYNONYMS.items() if name in valid}
    return [lasts[name] for name in difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)]
