"""Check that a change of the code changes no number: six short runs and four analyses, bit by bit.

python benchmarks/same_numbers.py --record    # before the change
python benchmarks/same_numbers.py             # after it: exit code 1 if anything differs

The runs are full fine-tuning, a linear probe, LoRA on two targets, packed and alone, and PEFT's
IA3, all in fp32. The analyses measure two checkpoints, an adapter, an adapter in GGUF, and the
difference of two updates. Only commands and the files they write are used, so the layout of the
code may change. Numbers are compared within one kind of processor, because kernels differ.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from lowrank_study.assets import cache_folder
from lowrank_study.machine import processor

ROOT = Path(__file__).parents[1]
FIXTURE = Path(__file__).parent / "results" / "same_numbers.json"
COMMON = (
    *("trainer.precision=fp32", "task.train_size=256", "task.validation_size=200"),
    *("task.test_size=300", "model.dropout=0.0", "workers=1"),
)
SWEEPS = {
    "full_and_probe": ("method=full,head", "seed=0"),
    "packed": ("method=lora", "method.rank=4,8", "method.target=attention_qv", "seed=0"),
    "alone": ("method=lora", "method.rank=4", "method.target=mlp", "seed=1", "pack=1"),
    "ia3": ("method=peft", "method.peft_type=IA3", "method.options={feedforward_modules: []}"),
}
INSTRUCTIONS = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_tile"})
METRICS = ("train", "validation", "test", "steps", "best_step")


def main() -> int:
    """Record the numbers, or compare them with the recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="replace the recorded numbers")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose code runs")
    parser.add_argument("--fixture", type=Path, default=FIXTURE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = measured(arguments.root.resolve(), Path(folder))
    if arguments.record:
        arguments.fixture.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
        print(f"recorded {len(numbers['runs'])} runs and {len(numbers['analyses'])} analyses")
        return 0
    recorded = json.loads(arguments.fixture.read_text())
    if recorded["processor"] != numbers["processor"]:
        print(
            f"error: recorded on {recorded['processor']}, not on {numbers['processor']}; "
            "record the numbers of the earlier code on this machine first (--record --root)"
        )
        return 2
    different = list(differences(recorded, numbers))
    print(*(different or ["all numbers are the same, bit by bit"]), sep="\n")
    return int(bool(different))


def measured(root: Path, folder: Path) -> dict[str, Any]:
    """Run everything with the code of one checkout; return its numbers."""

    def command(script: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, str(root / script), *arguments],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):  # 1: a part of an input was left out, and reported
            sys.exit(
                f"{script} {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )

    results = folder / "results"
    for name, settings in SWEEPS.items():
        command(
            "experiments/train.py", "-m", f"results={results}", f"sweep={name}", *COMMON, *settings
        )
    runs = {
        run.name: run
        for run in sorted((results / "runs").iterdir())
        if (run / "record.json").exists()
    }
    found = {name: numbers_of_run(run, results) for name, run in runs.items()}
    base = next(
        path.parent
        for path in sorted(cache_folder().glob("wheels/**/model.safetensors"))
        if "minilm" in str(path)
    )

    def checkpoint(stem: str) -> str:
        return next(str(run / "checkpoint") for name, run in runs.items() if stem in name)

    name, sets = processor()
    small = gguf_files(folder)
    analyses = {
        "pair": (f"before={base}", f"after={checkpoint('full')}", "compare_with_base=true"),
        "adapter": (f"adapter={checkpoint('lora_r4_attention_qv')}", f"base={base}"),
        "gguf": (f"adapter={small['adapter']}", f"base={small['base']}"),
        "other": (
            f"adapter={checkpoint('lora_r4_attention_qv')}",
            f"other={checkpoint('lora_r8_attention_qv')}",
            f"base={base}",
        ),
    }
    return {
        "processor": " ".join([name, *sorted(sets & INSTRUCTIONS)]),
        "runs": found,
        "analyses": {
            name: analysed(command, arguments, folder / name)
            for name, arguments in analyses.items()
        },
    }


def numbers_of_run(run: Path, results: Path) -> dict[str, Any]:
    """Return a run's metrics, and hashes of its weights, predictions and singular values."""
    record = json.loads((run / "record.json").read_text())
    return {
        "metrics": {name: record.get(name) for name in METRICS},
        "weights": {
            path.name: hash_of_tensors(path)
            for path in sorted((run / "checkpoint").glob("*.safetensors"))
        },
        "predictions": hash_of(run / "predictions.parquet"),
        "spectra": hash_of(results / "spectra" / f"{run.name}.parquet"),
    }


def analysed(command: Any, arguments: tuple[str, ...], out: Path) -> dict[str, str]:
    """Return hashes of the tables of one analysis."""
    command("analysis/measure_spectra.py", *arguments, f"out={out}")
    return {path.name: hash_of(path) for path in sorted(out.glob("*.parquet"))}


def hash_of_tensors(path: Path) -> str:
    """Return the SHA-256 over names and values; the order of a file's metadata is arbitrary."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(name.encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def hash_of(path: Path) -> str:
    """Return the SHA-256 over a table's numbers and names, whatever the order of its columns."""
    if not path.is_file():
        return "none"
    frame = pd.read_parquet(path)
    kept = frame[sorted(frame.columns)]
    text = kept.map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell)
    return hashlib.sha256(text.to_json(double_precision=15).encode()).hexdigest()


def gguf_files(folder: Path) -> dict[str, Path]:
    """Write a small base model and a LoRA adapter, as llama.cpp's tools do."""
    random = np.random.default_rng(0)
    name = "blk.0.attn_q.weight"
    files = {"base": folder / "base.gguf", "adapter": folder / "adapter.gguf"}
    base = gguf.GGUFWriter(files["base"], "llama")
    base.add_block_count(1)
    base.add_head_count(4)
    base.add_head_count_kv(4)
    base.add_tensor(name, random.normal(size=(64, 64)).astype(np.float32))
    adapter = gguf.GGUFWriter(files["adapter"], "llama")
    adapter.add_string("general.type", "adapter")
    adapter.add_string("adapter.type", "lora")
    adapter.add_float32("adapter.lora.alpha", 8.0)
    adapter.add_tensor(f"{name}.lora_a", random.normal(size=(4, 64)).astype(np.float32))
    adapter.add_tensor(f"{name}.lora_b", random.normal(size=(64, 4)).astype(np.float32))
    for writer in (base, adapter):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def differences(recorded: Any, found: Any, path: str = "") -> Any:
    """Yield a line for each value that differs."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in sorted(recorded.keys() | found.keys()):
            yield from differences(recorded.get(key), found.get(key), f"{path}/{key}")
    elif recorded != found:
        yield f"{path}: {recorded!r} is now {found!r}"


if __name__ == "__main__":
    sys.exit(main())
