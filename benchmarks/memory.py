"""Compare the estimated memory of methods with the measured one, and with published figures.

    python benchmarks/memory.py [--only measured,published] [--quick]

`measured` trains each method on MiniLM and on SmolLM2, in a process of its own, and compares the
peak beside the libraries with the estimate of `analysis/estimate_memory.py`. `published` estimates
what papers and tutorials say of models that don't fit here.
"""

import argparse
from pathlib import Path

import timing
from processes import train_here
from steps import hardware, precisions

from lowrank_study.claims.files import load_claims
from lowrank_study.config.run import compose, composed
from lowrank_study.training.estimate import Estimate, estimate, read_request

HERE = Path(__file__).parent
METHODS = {
    "full fine-tuning": ("method=full",),
    "linear probe": ("method=head",),
    "LoRA r=8, query and value": ("method=lora", "method.rank=8"),
    "LoRA r=64, all linear maps": ("method=lora_all_linear", "method.rank=64"),
}
LENGTH = 128
"""Tokens of a text; nearly all documents are longer and truncated."""
MODELS = {
    "MiniLM": (
        ("model=minilm", "model.dropout=0.0"),
        "classification",
        ("task=newsgroups", "task.train_size=64", "task.validation_size=16", "task.test_size=16"),
    ),
    "SmolLM2": (
        ("model=smollm2",),
        "language_modelling",
        ("task=grimm_tales", "task.train_size=1", "task.validation_size=1", "task.test_size=1"),
    ),
}
"""Model → its overrides, the kind of its task, and the task."""
PUBLISHED = {
    "d002_full_memory_7b": ("llama_7b", "fp32", "method=full"),
    "d002_lora_memory_7b": ("llama_7b", "fp32", "method=lora", "method.rank=8"),
    "d002_full_65b": ("llama_65b", "bf16", "method=full"),
    "d002_lora_65b": ("llama_65b", "bf16", "method=lora_all_linear", "method.rank=16"),
    "d002_gpt3_memory": ("gpt3_175b", "fp32", "method=full"),
}
"""Claim → the published architecture, the precision and the method that it speaks of."""
TARGET = 15.0


def measured(*, quick: bool) -> list[timing.Figure]:
    """Compare estimates with measured peaks."""
    figures = []
    for model, (base, kind, task) in MODELS.items():
        for label, method in METHODS.items():
            if kind == "language_modelling" and "method=head" in method:
                continue  # a language model has no new head
            if quick and (model, label) != ("MiniLM", "linear probe"):
                continue
            for precision in precisions():
                figures.append(_error(f"{model}, {label}", precision, base, kind, task, method))
    return figures


def _error(
    label: str, precision: str, base: tuple[str, ...], kind: str, task: tuple[str, ...],
    method: tuple[str, ...],
) -> timing.Figure:  # fmt: skip
    estimated = _estimate(f"kind={kind}", f"length={LENGTH}", *base, *method, precision=precision)
    spec = compose(
        *task, *base, *method, f"task.max_length={LENGTH}", f"trainer.precision={precision}"
    )
    found = train_here([spec])
    beside = found["peak_bytes"] - found["interpreter_bytes"]
    return timing.figure(
        f"{precision} ({hardware(precision)}): {label}: estimated {estimated.peak / 1e6:.0f} MB, "
        f"measured {beside / 1e6:.0f} MB, error",
        [100 * abs(estimated.peak / beside - 1.0)],
        unit="%",
        at_most=TARGET,
    )


def published() -> list[timing.Figure]:
    """Estimate what claims say of large models."""
    claims = {claim.id: claim for claim in load_claims()}
    figures = []
    for claim_id, (architecture, precision, *method) in PUBLISHED.items():
        claim = claims[claim_id]
        found = _estimate(f"architecture={architecture}", *method, precision=precision)
        training = sum(found.training.values())
        numbers = " to ".join(f"{number:g}" for number in claim.published)
        said = f"{numbers} {claim.unit} in {claim_id}"
        name = f"{architecture}, {' '.join(method)}, {precision}: {said}"
        figures.append(timing.figure(f"{name}; training here", [training / 1e9], unit="GB"))
        figures.append(timing.figure(f"{name}; check before it", [found.check / 1e9], unit="GB"))
    return figures


def _estimate(*overrides: str, precision: str) -> Estimate:
    config = composed("estimate_memory", *overrides, f"precision={precision}")
    return estimate(read_request(config))


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="measured,published")
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    cases = {"measured": lambda: measured(quick=arguments.quick), "published": published}
    provenance = timing.facts(length=str(LENGTH))
    found = {name: cases[name]() for name in arguments.only.split(",")}
    out = arguments.out or HERE / "results"
    timing.write_results(out, "memory", found, provenance=provenance)
    for row in timing.table(found):
        print("  ".join(row))


if __name__ == "__main__":
    main()
