"""Runs are packed only with compatible runs, and no worker is left idle."""

from itertools import pairwise

from lowrank_study.config.run import compose
from lowrank_study.methods.lora import Lora
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.packs import packs


def cost(spec: RunSpec) -> float:
    """Return a cost that grows with the rank; full fine-tuning also has weight gradients."""
    return 1.0 + spec.method.rank / 1000 if isinstance(spec.method, Lora) else 1.5


def sizes(specs: list[RunSpec], *, workers: int) -> list[int]:
    return [len(pack) for pack in packs(specs, limit=lambda _: 4, workers=workers, cost=cost)]


def sweep_specs() -> list[RunSpec]:
    targets = ("attention_qv", "all_linear")
    lora = [
        compose(f"method.rank={rank}", f"method.target={target}", f"seed={seed}")
        for rank in (64, 1, 8, 2, 16, 4, 32)
        for target in targets
        for seed in (0, 1)
    ]
    return [*lora, *(compose("method=full", f"seed={seed}") for seed in (0, 1))]


def test_every_run_is_in_one_pack_of_compatible_runs() -> None:
    specs = sweep_specs()
    made = packs(specs, limit=lambda largest: 4, workers=1, cost=cost)
    assert sorted(s.run_id for pack in made for s in pack) == sorted(s.run_id for s in specs)
    for pack in made:
        assert len(pack) <= 4
        assert len({(s.method.label, s.data_seed) for s in pack}) == 1
        if len(pack) > 1:
            targets = {s.method.target for s in pack}  # type: ignore[union-attr]
            ranks = [s.method.rank for s in pack]  # type: ignore[union-attr]
            assert len(targets) == 1
            assert ranks == sorted(ranks)
    assert sorted(len(pack) for pack in made) == [1, 1, *[3] * 4, *[4] * 4]
    assert all(len(a) >= len(b) for a, b in pairwise(made))


def test_seeds_of_the_factors_are_packed_where_the_data_order_is_shared() -> None:
    apart = [compose(f"seed={seed}") for seed in range(3)]
    assert sizes(apart, workers=1) == [
        1,
        1,
        1,
    ]
    shared = [compose(f"seed={seed}", "data_seed=0") for seed in range(3)]
    assert sizes(shared, workers=1) == [3]


def test_full_fine_tuning_and_the_reference_path_are_never_packed() -> None:
    full = [compose("method=full", f"method.learning_rate={rate}") for rate in (1e-4, 2e-4)]
    plain = [compose("trainer=reference", f"method.rank={rank}") for rank in (1, 2)]
    assert sizes([*full, *plain], workers=1) == [1, 1, 1, 1]


def test_large_packs_leave_no_worker_idle() -> None:
    specs = [compose("method.rank=4"), compose("method.rank=64")]
    assert sizes(specs, workers=1) == [2]
    assert sizes(specs, workers=2) == [1, 1]
    many = [compose("method.rank=4", f"seed={seed}", "data_seed=0") for seed in range(16)]
    assert sizes(many, workers=2) == [4] * 4


def test_memory_is_predicted_only_for_runs_that_can_be_packed() -> None:
    asked: list[RunSpec] = []

    def limit(largest: RunSpec) -> int:
        asked.append(largest)
        return 4

    specs = sweep_specs()
    packs(specs, limit=limit, workers=1, cost=cost)
    assert len(asked) == 4  # two targets, two seeds
    asked.clear()
    packs(specs[-2:], limit=limit, workers=1, cost=cost)
    packs(
        [compose("trainer=reference", f"method.rank={r}") for r in (1, 2)],
        limit=limit,
        workers=1,
        cost=cost,
    )
    assert not asked
    assert packs([], limit=limit, workers=2, cost=cost) == []


def test_a_pack_is_divided_where_all_workers_then_finish_earlier() -> None:
    lora = [
        compose(f"method={method}", f"method.rank={rank}")
        for method in ("lora", "lora_all_linear")
        for rank in (1, 4, 16, 64)
    ]
    specs = [*lora, compose("method=full")]

    def measured(spec: RunSpec) -> float:
        """Return about the seconds of a run alone."""
        if isinstance(spec.method, Lora):
            return 13.0 if spec.method.target_label == "all_linear" else 10.0
        return 14.0

    made = packs(specs, limit=lambda _: 4, workers=2, cost=measured)
    assert sorted(map(len, made)) == [1, 1, 3, 4]
    assert sorted(map(len, packs(specs, limit=lambda _: 4, workers=1, cost=measured))) == [1, 4, 4]
