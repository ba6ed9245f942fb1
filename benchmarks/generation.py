"""Compare greedy answers to a batch of prompts with answers to one prompt at a time.

    python benchmarks/generation.py [--precision bf16] [--rounds 3] [--tokens 32]

SmolLM2-135M with LoRA of rank 8 on all linear maps answers 32 test problems of GSM-Symbolic
together, or two of median length alone. All answers have the same number of tokens.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import timing
import torch
from processes import HERE
from steps import hardware, precisions

from lowrank_study.config.run import compose
from lowrank_study.data.conversations import Turn, last_turn
from lowrank_study.data.tokenizer import load_tokenizer
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.methods.layers.linear import round_frozen
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.evaluate import autocast
from lowrank_study.training.generation import generate
from lowrank_study.training.models import build_model
from lowrank_study.training.unpadded import unpad

SETTINGS = ("task=gsm_symbolic", "model=smollm2", "method=lora_all_linear", "method.rank=8")
TOGETHER, ALONE = 32, 2
TARGET = 5.0
"""Least ratio of answers per second."""


def compared(precision: str, *, rounds: int, tokens: int) -> list[timing.Figure]:
    """Compare answers per second in a precision."""
    spec = compose(*SETTINGS, f"trainer.precision={precision}")
    assert isinstance(spec.task, Generation)
    folder = model_folder(spec.model)
    tokenizer, test = load_tokenizer(folder), splits_of(spec).test
    model = build_model(spec, folder, number_of_labels=0).eval()
    unpad(model)
    if precision == "bf16":
        round_frozen(model)
    found = [last_turn(test, n * len(test) // TOGETHER, tokenizer) for n in range(TOGETHER)]
    turns = sorted((turn for turn in found if turn is not None), key=lambda turn: len(turn.prompt))
    assert len(turns) == TOGETHER
    middle = turns[(TOGETHER - ALONE) // 2 :][:ALONE]

    def answer(some: list[Turn], prompts: int, most: int = tokens) -> None:
        task = replace(spec.task, max_new_tokens=most)
        place = torch.device("cpu")
        with autocast(place, precision):
            answers = generate(
                model, some, task=task, tokenizer=tokenizer, device=place, prompts=prompts
            )
        assert all(each.cut_off for each in answers), "an answer ended early; set fewer --tokens"

    seconds = timing.interleaved(
        {"alone": lambda: answer(middle, 1), "together": lambda: answer(turns, TOGETHER)},
        rounds=rounds,
        warm_up=lambda: answer(turns[:2], 2, most=2),
    )
    title = f"SmolLM2-135M, {precision} ({hardware(precision)})"
    return [
        timing.ratio(
            f"{title}: answers of {tokens} tokens per second, {TOGETHER} together / one at a time",
            [TOGETHER / each for each in seconds["together"]],
            [ALONE / each for each in seconds["alone"]],
            at_least=TARGET,
        ),
        timing.figure(
            f"{title}: an answer of {tokens} tokens, {TOGETHER} together",
            [each / TOGETHER for each in seconds["together"]],
            unit="s",
        ),
    ]


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default=precisions()[-1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    provenance = timing.facts(rounds=str(arguments.rounds), tokens=str(arguments.tokens))
    precision = arguments.precision
    found = {precision: compared(precision, rounds=arguments.rounds, tokens=arguments.tokens)}
    out = arguments.out or HERE / "results"
    timing.write_results(out, "generation", found, provenance=provenance)
    for row in timing.table(found):
        print("  ".join(row))


if __name__ == "__main__":
    main()
