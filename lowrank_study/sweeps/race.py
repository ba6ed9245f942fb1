"""Choose learning rates by a race, in which trials of rates that fall behind are stopped.

Configurations that differ only in their rank form a *family*, because under α/r the best rate moves
little with the rank. A *block* is a member of the family with one seed. In a block all rates start
from the same weights and see the same texts in the same order, so their losses are paired.

1. The leading rate, at first the configured one, is trained to the last step in every block.
2. Its two neighbours are trained in the same blocks. A trial is stopped at a rung, after a part of
   its steps, if its validation loss exceeds the leader's. A higher rate has some slack.
3. A neighbour with the lower final loss in more than half of the blocks takes the lead; at exactly
   half, one more block decides. Then the neighbours of the new leader are tried, so that the start
   of the race favours no method.
4. Every member gets the last leader's rate. If a neighbour won all blocks of one member, the two
   rates are compared there with one more seed, and a neighbour that wins again is chosen for it.

All decisions are made on stored curves, so `replayed` repeats them without training.

Sources: O. Maron and A. Moore, "Hoeffding races", NIPS 1993, for racing; M. Birattari et al., "A
racing algorithm for configuring metaheuristics", GECCO 2002, for blocks; K. Jamieson and A.
Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016,
for rungs.
"""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace

from lowrank_study.config.tuning import Race
from lowrank_study.methods.lora import Lora
from lowrank_study.runs.limits import Limits, first_above
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.trials import Train, none_converged, rounded, trial

Block = tuple[str, int]
"""The name of a configuration, and a seed."""
Entry = tuple[int, Block]
"""A trial of a race: the exponent of its rate, and its block."""
Asked = dict[Entry, Limits]
Runs = Mapping[Entry, TrainedRun]


def race_rates(
    configurations: Mapping[str, RunSpec], race: Race, *, train: Train
) -> dict[str, float]:
    """Return the rate of each configuration, by name; for the arguments see `tuned`."""
    trials: dict[str, RunSpec] = {}
    limits: dict[str, Limits] = {}
    running = [_Family(members, race) for members in families(configurations)]
    rates: dict[str, float] = {}
    while running:
        for family in running:
            for entry, above in family.asked.items():
                spec = family.trial(entry)
                trials[spec.run_id], limits[spec.run_id] = spec, above
        given = {run_id: above for run_id, above in limits.items() if above}
        runs = {run.spec.run_id: run for run in train(list(trials.values()), given)}
        for family in running:
            family.advance({entry: runs[family.trial(entry).run_id] for entry in family.asked})
            rates |= family.rates
        running = [family for family in running if family.asked]
    return rates


def families(configurations: Mapping[str, RunSpec]) -> Iterable[dict[str, RunSpec]]:
    """Group configurations that differ only in the rank of LoRA, in the order of the rank."""
    families: dict[str, dict[str, RunSpec]] = {}
    for name, of in sorted(
        configurations.items(), key=lambda item: item[1].method.adapter_rank or 0
    ):
        families.setdefault(family_name(of), {})[name] = of
    return families.values()


def family_name(of: RunSpec) -> str:
    """Return the same name for configurations that differ only in the rank of LoRA."""
    method = replace(of.method, rank=1) if isinstance(of.method, Lora) else of.method
    return replace(of, method=method).run_id


class _Family:
    """The race of one family."""

    def __init__(self, members: Mapping[str, RunSpec], race: Race) -> None:
        self.rates: dict[str, float] = {}
        """The chosen rates, once the race has ended."""
        self._members, self._race = members, race
        self._losses: dict[Entry, float] = {}
        """Final losses; infinite if the trial was stopped or diverged."""
        self._curves: dict[Entry, Sequence[Mapping[str, float]]] = {}
        self._diverged: set[int] = set()
        self._steps = self._run()
        self.asked: Asked = next(self._steps)

    def trial(self, entry: Entry) -> RunSpec:
        """Return the run of an entry."""
        exponent, (name, seed) = entry
        return trial(self._members[name], self._rate(exponent), seed, rungs=self._race.rungs)

    def advance(self, runs: Runs) -> None:
        """Take the results of the trials that were asked for, and ask for the next ones."""
        for entry, run in runs.items():
            if run.status == "diverged":
                self._diverged.add(entry[0])
                self._losses[entry] = math.inf
                continue
            curve = self._curves[entry] = run.record["curve"]
            is_behind = first_above(curve, self.asked[entry]) is not None
            self._losses[entry] = math.inf if is_behind else self._final_loss(entry)
        self.asked = next(self._steps, {})

    def _run(self) -> Generator[Asked, None, None]:
        """Yield trials, whose results are in `self` afterwards; set the rates at the end."""
        blocks, further = self._blocks()
        leader, tried = 0, {0}
        while True:
            yield {(leader, block): {} for block in blocks}
            free = [rate for rate in (leader - 1, leader + 1) if rate not in tried]
            if not (challengers := free[: self._race.most - len(tried)]):
                break
            tried |= {*challengers}
            yield {(rate, b): self._limits(rate, leader, b) for rate in challengers for b in blocks}
            wins = {rate: self._wins(rate, leader, blocks) for rate in challengers}
            best = max(challengers, key=lambda rate: (wins[rate], -rate))
            if 2 * wins[best] == len(blocks) and further:
                blocks.append(further.pop(0))
                yield {(leader, blocks[-1]): {}}
                yield {(best, blocks[-1]): self._limits(best, leader, blocks[-1])}
            if 2 * self._wins(best, leader, blocks) <= len(blocks):
                break
            leader = best
        chosen = dict.fromkeys(self._members, leader)
        rivals = [
            (rate, another)
            for another in further
            for rate in (leader + 1, leader - 1)
            if rate in tried
            and all(self._wins(rate, leader, [b]) for b in blocks if b[0] == another[0])
        ]
        if rivals:
            yield {(leader, block): {} for _, block in rivals}
            yield {(rate, block): self._limits(rate, leader, block) for rate, block in rivals}
            chosen |= {b[0]: rate for rate, b in rivals if self._wins(rate, leader, [b])}
        if {*chosen.values()} & self._diverged:
            raise none_converged(next(iter(self._members)), [self._rate(rate) for rate in tried])
        self.rates = {name: self._rate(rate) for name, rate in chosen.items()}

    def _blocks(self) -> tuple[list[Block], list[Block]]:
        """Return the blocks of the race, and a further one for each member with a seed left.

        There are at least as many blocks as seeds. Members take turns with the seeds, because the
        order of the texts, which the seed sets, favours the same rates at all ranks.
        """
        seeds = self._race.seeds
        each = -(-len(seeds) // len(self._members))
        blocks, further = [], []
        for number, name in enumerate(self._members):
            turn = number * each % len(seeds)
            mine = [*seeds[turn:], *seeds[:turn], *self._race.final_seeds]
            blocks += [(name, seed) for seed in mine[:each]]
            further += [(name, seed) for seed in mine[each : each + 1]]
        return blocks, further

    def _rate(self, exponent: int) -> float:
        first = next(iter(self._members.values())).method.learning_rate
        return rounded(first * self._race.factor**exponent)

    def _limits(self, rate: int, leader: int, block: Block) -> Limits:
        """Return the leader's losses at the rungs before the last step, with slack.

        A higher rate than the leader's catches up while the rate decays to zero, so its slack is
        proportional to the steps that are left. A lower rate takes smaller steps to the end.
        """
        *rungs, last = self._curves.get((leader, block), [{"step": 0.0}])
        slack = self._race.slack if rate > leader else 0.0
        return {
            int(point["step"]): point["loss"] * (1.0 + slack * (1.0 - point["step"] / last["step"]))
            for point in rungs
            if not math.isnan(point["loss"])
        }

    def _final_loss(self, entry: Entry) -> float:
        """Return the lowest loss among the steps after which a reported run is evaluated."""
        curve, train = self._curves[entry], self._members[entry[1][0]].train
        steps = train.evaluated_steps(int(curve[-1]["step"]))
        losses = [point["loss"] for point in curve if point["step"] in steps]
        return min((loss for loss in losses if not math.isnan(loss)), default=math.inf)

    def _wins(self, rate: int, leader: int, blocks: Sequence[Block]) -> int:
        """Return in how many blocks a rate is better than the leader."""
        return sum(self._key(rate, block) > self._key(leader, block) for block in blocks)

    def _key(self, rate: int, block: Block) -> tuple[bool, float]:
        """Return what is greater for a better rate; of two that diverged, the smaller is better."""
        if rate in self._diverged:
            return False, -rate
        return True, -self._losses.get((rate, block), math.inf)
