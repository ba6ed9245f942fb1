"""Damaged files of the run store are noticed, named and never stop other runs."""

import json
import random
from contextlib import suppress

import pytest

from lowrank_study.errors import InputError
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec
from tests.runs.conftest import commit, plan


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("record.json", "{"),
        ("record.json", "\\xff\\xfe"),
        ("record.json", "[]"),
        ("record.json", '{"status": "finished"}'),
        ("spec.json", '{"seed": 0}'),
        ("spec.json", ""),
        ("spec.json", "other seed"),
        ("record.json", None),
    ],
)
def test_a_damaged_run_has_not_ended_and_is_moved_aside(
    file: str,
    content: str | None,
    store: RunStore,
    specs: list[RunSpec],
    capsys: pytest.CaptureFixture[str],
) -> None:
    [run_id] = plan(store, specs[:1])
    commit(store, run_id, weights="w")
    path = store.folder / run_id / file
    if content == "other seed":
        content = path.read_text().replace('"seed": 0', '"seed": 1')
    path.write_text(content) if content is not None else path.unlink()
    assert store.ended([run_id]) == store.ended([run_id]) == []
    told = capsys.readouterr().err.splitlines()
    assert told == [] if content is None else len(told) == 1
    assert all(str(path) in line and "run its sweep again" in line for line in told)
    with pytest.raises(InputError, match=r"is damaged|no such run has ended"):
        store.load(run_id)
    plan(store, specs[:1])
    [aside] = (store.folder / ".aside").iterdir()
    assert f"moved to {aside}" in capsys.readouterr().err
    assert (aside / "checkpoint" / "weights").read_text() == "w"
    commit(store, run_id)
    assert [run.status for run in store.ended([run_id])] == ["done"]


def test_a_run_named_by_an_older_version_is_not_reported_as_damaged(
    store: RunStore, specs: list[RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    [run_id] = plan(store, specs[:1])
    commit(store, run_id)
    older = f"older-{run_id.rpartition('-')[2]}"
    (store.folder / run_id).rename(store.folder / older)
    assert store.ended([older]) == []
    told = capsys.readouterr().err
    assert "an older version trained it" in told
    assert f"trains it as {run_id}" in told
    assert "damaged" not in told


@pytest.mark.parametrize("file", ["record.json", "spec.json", ".sweeps/s.json", ".planned/"])
def test_damage_never_gives_a_traceback(file: str, store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs[:2])
    commit(store, run_ids[0], weights="w")
    folder = store.folder if file.startswith(".") else store.folder / run_ids[0]
    path = folder / (f".planned/{run_ids[1]}.json" if file == ".planned/" else file)
    whole, rng = path.read_bytes(), random.Random(file)
    for _ in range(12):
        at = rng.randrange(len(whole))
        other = rng.choice(
            [b"", b"null", b"[" * 100_000, bytes([whole[at] ^ 1 << rng.randrange(8)])]
        )
        path.write_bytes(whole[:at] + other + whole[at + rng.choice([1, 1, 30, 10**6]) :])
        for act in (store.sweep, store.question, store.earlier):
            with suppress(InputError):
                act("s")
        with suppress(InputError):
            store.load(run_ids[0]).check_files("checkpoint/")
        store.ended(run_ids)
        if lease := store.lease(run_ids):
            lease.release()
        plan(store, specs[:2])
        assert store.sweep("s") == run_ids
        if not store.ended(run_ids):
            commit(store, run_ids[0], weights="w")
        path.write_bytes(whole)


def test_a_partial_run_does_not_block_a_commit(store: RunStore, specs: list[RunSpec]) -> None:
    [run_id] = plan(store, specs[:1])
    (store.folder / run_id / "checkpoint").mkdir(parents=True)
    commit(store, run_id)
    assert [run.status for run in store.ended([run_id])] == ["done"]


@pytest.mark.parametrize("content", ["{", "[]", '{"packs": 3, "question": "?"}', '{"packs": [[]]}'])
def test_a_damaged_sweep_is_named(content: str, store: RunStore, specs: list[RunSpec]) -> None:
    run_ids = plan(store, specs)
    (store.folder / ".sweeps" / "s.json").write_text(content)
    with pytest.raises(InputError, match=r"s.json is damaged: run the command"):
        store.sweep("s")
    assert plan(store, specs) == run_ids
    assert store.sweep("s") == run_ids


def test_a_damaged_plan_is_named_and_the_others_are_trained(
    store: RunStore, specs: list[RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    run_ids = plan(store, specs)
    (store.folder / ".planned" / f"{run_ids[0]}.json").write_text("{")
    lease = store.lease(run_ids)
    assert lease is not None
    lease.release()
    assert lease.run_id == run_ids[1]
    assert f"{run_ids[0]}.json is damaged: plan its sweep again" in capsys.readouterr().err


def test_a_changed_file_is_refused_and_an_older_run_is_not(
    store: RunStore, specs: list[RunSpec]
) -> None:
    [run_id] = plan(store, specs[:1])
    commit(store, run_id, weights="weights")
    run = store.load(run_id)
    assert run.checkpoint_sha256 is not None
    run.check_files("checkpoint/")
    (run.checkpoint / "weights").write_text("weighty")
    with pytest.raises(InputError, match=r"weights has changed since the run wrote it"):
        run.check_files("checkpoint/")
    (run.checkpoint / "weights").unlink()
    with pytest.raises(InputError, match=r"weights can't be read"):
        run.check_files("checkpoint/")
    path = run.folder / "record.json"
    older = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    path.write_text(json.dumps(older))
    run = store.load(run_id)
    assert run.checkpoint_sha256 is None
    run.check_files("checkpoint/")
