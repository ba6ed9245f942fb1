"""Suggest the setting that a user probably meant by an unknown one.

>>> unknown_setting("lr", "0.1", valid=["method.learning_rate", "seed"])
'lr is not a setting of this command: did you mean method.learning_rate=0.1?'
"""

import difflib
from collections.abc import Collection

_SYNONYMS = {
    synonym: name
    for name, synonyms in {
        "method.learning_rate": "lr",
        "method.alpha": "alpha lora_alpha",
        "method.rank": "r lora_r lora_rank",
        "method.dropout": "lora_dropout",
        "method.target": "target_modules modules",
        "method.scaling": "use_rslora",
        "method.peft_type": "peft",
        "trainer.epochs": "epoch num_epochs num_train_epochs",
        "trainer.batch_size": "bs batch per_device_train_batch_size train_batch_size",
        "trainer.weight_decay": "wd",
        "trainer.warmup_fraction": "warmup_ratio warmup",
        "trainer.max_grad_norm": "gradient_clipping",
        "trainer.head_learning_rate": "head_lr",
        "trainer.precision": "fp16 bf16 dtype",
        "task.max_length": "max_seq_length max_seq_len max_len",
        "task": "dataset",
        "task.source": "dataset_name data",
        "task.train": "train_file",
        "task.test": "test_file",
        "task.validation": "validation_file",
        "task.label_column": "label",
        "task.text_columns": "text text_column",
        "task.separator": "sep delimiter",
        "task.prompt_column": "prompt question instruction",
        "task.response_column": "response answer completion output",
        "task.option_columns": "options choices endings",
        "task.messages_column": "messages conversations chat",
        "model.source": "model_name_or_path base_model model_id",
        "before": "pretrained",
        "after": "finetuned tuned",
        "adapter": "lora adapter_path",
        "results": "output_dir",
        "out": "output outdir out_dir",
        "seed": "seeds",
        "device": "gpu",
        "workers": "num_workers jobs",
        "sweep": "experiment",
        "tracker": "report_to",
        "ranks": "k",
    }.items()
    for synonym in synonyms.split()
}
"""Names that other projects use, and common short ones, with the setting here."""


def unknown_setting(key: str, value: str, valid: Collection[str], *, of: str = "") -> str:
    """Return a message on an unknown setting that suggests the closest valid ones.

    `of` is the choice that decides which settings are valid, as in `method=full`.
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
