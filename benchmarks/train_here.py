"""Train runs together in this process, and print their cost; `processes.py` starts it.

python benchmarks/train_here.py runs.json THREADS
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from lowrank_study.machine import status_bytes
from lowrank_study.spec import from_mapping
from lowrank_study.training.fit import Job, fit_together
from lowrank_study.training.memory import predict_peak
from lowrank_study.training.tracking import Tracker


def main() -> None:
    """Print seconds, examples a second, accuracies, memory and predicted memory, as JSON."""
    specs = [from_mapping(mapping) for mapping in json.loads(Path(sys.argv[1]).read_text())]
    torch.set_num_threads(int(sys.argv[2]))
    predicted = predict_peak(specs[0])
    assert predicted is not None
    interpreter = status_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as out:
        outcomes = fit_together(
            [
                Job(spec=spec, checkpoint_folder=Path(out) / spec.run_id, tracker=Tracker())
                for spec in specs
            ],
            device="cpu",
        )
    records = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        records.append(outcome.record)
    last = records[-1]
    print(
        json.dumps(
            {
                "examples_per_second": last["examples_per_second"],
                "seconds": len(records) * last["train_seconds"],
                "test_accuracies": [record["test"].get("accuracy") for record in records],
                "interpreter_bytes": interpreter,
                "peak_bytes": last["peak_memory_bytes"],
                "predicted_bytes": predicted.peak(len(specs)),
            }
        )
    )


if __name__ == "__main__":
    main()
