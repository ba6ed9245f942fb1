"""Attack the run store with real processes: stops, kills, skewed clocks, equal host names.

python benchmarks/store_attack.py                 # 2,000 stops: about five minutes
python benchmarks/store_attack.py --stops 100 --seed 1 --out FOLDER

Workers and planners share a store. Each is stopped (SIGSTOP) at any point, also between any two
file operations, woken after its lease has expired, or killed. Each worker's clock is hours off, and
some run in containers with the same host name and their own pids. Every file of a run contains
the attempt that wrote it, so a mixture of two attempts is detected. The counts are written to
`results/store_attack.json` and `.md`.
"""

import argparse
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_study.runs import leases
from lowrank_study.runs import store as runs
from lowrank_study.runs.leases import Lease, LeaseLost
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec

HERE = Path(__file__).parent
HEARTBEAT_SECONDS, STALE_SECONDS = 0.02, 0.25
WORKERS, PLANNERS, RUNS = 7, 3, 48
SECONDS_A_ROUND = 120.0
"""A run that takes longer is stuck."""


# ---------------------------------------------------------------- in an attacked process


def make_fragile(rng: random.Random, share: float) -> None:
    """Stop this process before some of its operations on files; the attacker wakes it."""
    pid = os.getpid()

    def fragile(operation: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any, **options: Any) -> Any:
            if rng.random() < share:
                os.kill(pid, signal.SIGSTOP)
            return operation(*arguments, **options)

        return stopped

    for module, names in {
        os: ("rename", "replace", "mkdir", "rmdir"),
        leases: ("write_json", "flush_to_disk", "sha256_of_results", "take_away", "entries"),
        runs: ("write_json", "read_run", "state_in"),
    }.items():
        for name in names:
            setattr(module, name, fragile(getattr(module, name)))


def live_elsewhere(rng: random.Random, container: int | None) -> None:
    """Set this process's clock hours off; in a container, its pid is 1 like the others'."""
    hours = rng.uniform(-30, 30)
    real = time.time
    time.time = lambda: real() + 3600 * hours
    if container is not None:
        leases.process_space = lambda: f"host boot pid:[{container}]"
        leases.is_alive = lambda pid: False  # never asked about this process itself
        os.getpid = lambda: 1


def shorten_lease() -> None:
    """Make leases stale within a fraction of a second, with a faster heartbeat."""
    leases.HEARTBEAT_SECONDS, leases.STALE_SECONDS = HEARTBEAT_SECONDS, STALE_SECONDS


def attacked_worker(folder: Path, seed: int, share: float, container: int | None) -> None:
    """Write runs whose every file contains the attempt, and report how each ended."""
    rng = random.Random(seed)
    shorten_lease()
    make_fragile(rng, share)
    live_elsewhere(rng, container)
    store = RunStore(folder)
    while True:
        for lease in store.lease_pack(store.packs("attack")):
            with lease:
                print(_one_attempt(lease, rng), lease.run_id, flush=True)
        time.sleep(HEARTBEAT_SECONDS)


def _one_attempt(lease: Lease, rng: random.Random) -> str:
    asks = rng.random() < 0.5  # else it learns only at the end that it lost the run
    try:
        for step in range(6):
            (lease.folder / "checkpoint").mkdir(parents=True, exist_ok=True)
            (lease.folder / "checkpoint" / f"part{step}").write_text(lease.token)
            time.sleep(rng.uniform(0.0, 0.03))
            if asks:
                lease.advance(step / 6)
        status = "failed" if rng.random() < 0.25 else "done"
        lease.commit(status=status, record={"by": lease.token, "message": "by chance"})
    except LeaseLost:
        return "lost"
    except (FileNotFoundError, FileExistsError):  # the run was taken over during an operation
        return "lost"
    return status


def attacked_planner(folder: Path, seed: int, share: float, specs: Sequence[RunSpec]) -> None:
    """Plan the runs repeatedly, so that failed ones are tried again."""
    rng = random.Random(seed)
    shorten_lease()
    make_fragile(rng, share)
    live_elsewhere(rng, None)
    store = RunStore(folder)
    while True:
        store.plan("attack", [specs[n : n + 3] for n in range(0, len(specs), 3)], question="")
        time.sleep(rng.uniform(0.0, 0.2))


# ---------------------------------------------------------------- the attacker


@dataclass(slots=True)
class Victim:
    """A process under attack."""

    command: list[str]
    log: Path
    process: "subprocess.Popen[bytes]"
    wake_at: float | None = None


def start(command: list[str], log: Path) -> Victim:
    """Start a process to attack."""
    with log.open("ab") as out:
        return Victim(command, log, subprocess.Popen(command, stdout=out, stderr=out))


def is_stopped(victim: Victim) -> bool:
    """Return whether a process is stopped, by the attacker or by itself."""
    with suppress(OSError, IndexError):
        state = Path(f"/proc/{victim.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"
    return False


def attack(victims: list[Victim], rng: random.Random, counts: Counter[str]) -> None:
    """Stop, wake or kill some processes, once."""
    for number, victim in enumerate(victims):
        if victim.process.poll() is not None:
            counts["crashed"] += victim.process.returncode != -signal.SIGKILL
            victims[number] = start(victim.command, victim.log)
        elif victim.wake_at is None:
            if is_stopped(victim) or rng.random() < 0.02:
                with suppress(ProcessLookupError):
                    victim.process.send_signal(signal.SIGSTOP)
                victim.wake_at = time.monotonic() + STALE_SECONDS * rng.uniform(1.2, 4.0)
            elif rng.random() < 0.002:
                victim.process.kill()
                counts["kills"] += 1
        elif time.monotonic() > victim.wake_at:
            victim.process.send_signal(signal.SIGCONT)
            victim.wake_at = None
            counts["stops"] += 1


def one_round(
    specs: Sequence[RunSpec], folder: Path, rng: random.Random, counts: Counter[str]
) -> None:
    """Attack a new store until all its runs are done, then count errors."""
    store = RunStore(folder / "runs")
    store.plan("attack", [specs[n : n + 3] for n in range(0, len(specs), 3)], question="")
    (folder / "specs").write_bytes(pickle.dumps(list(specs)))
    victims = []
    for number in range(WORKERS + PLANNERS):
        kind = "worker" if number < WORKERS else "planner"
        command = [sys.executable, str(HERE / "store_attack.py"), "--victim", kind]
        command += ["--folder", str(folder), "--seed", str(rng.randrange(2**31))]
        command += ["--container", str(number)] if number % 3 == 2 else []
        victims.append(start(command, folder / f"{number}.log"))
    until = time.monotonic() + SECONDS_A_ROUND
    try:
        while time.monotonic() < until:
            attack(victims, rng, counts)
            shares = {run_id: store.folder / run_id for run_id in store.sweep("attack")}
            if all(_status(path) == "done" for path in shares.values()):
                break
            time.sleep(0.01)
    finally:
        for victim in victims:
            victim.process.kill()
            victim.process.wait()
    counts["rounds"] += 1
    counts["runs"] += len(specs)
    for victim in victims:
        for line in victim.log.read_text().splitlines():
            word = line.partition(" ")[0]
            known = word in ("done", "failed", "lost")
            counts[f"attempts {word}" if known else "unexpected lines"] += 1
            if not known:
                print(f"{victim.log.name}: {line}", file=sys.stderr)
    check(store, specs, counts)


def _status(folder: Path) -> str:
    try:
        return str(json.loads((folder / "record.json").read_text())["status"])
    except OSError:
        return ""


def check(store: RunStore, specs: Sequence[RunSpec], counts: Counter[str]) -> None:
    """Count stuck runs, files of another attempt, and left-over files."""
    time.sleep(STALE_SECONDS)
    for _ in range(3):  # two looks detect a silent lease; the third cleans up
        store.plan("attack", [specs], question="")
        time.sleep(STALE_SECONDS)
    for spec in specs:
        folder = store.folder / spec.run_id
        if _status(folder) != "done":
            counts["stuck runs"] += 1
            continue
        run = store.load(spec.run_id)
        run.check_files("checkpoint/")
        names = sorted(file.name for file in folder.rglob("*") if file.is_file())
        expected = [*(f"part{step}" for step in range(6)), "record.json", "spec.json"]
        counts["wrong files"] += len(set(names) ^ set(expected))
        for part in (folder / "checkpoint").iterdir():
            counts["wrong files"] += part.read_text() != run.record["attempt"]
        counts["wrong files"] += run.record["by"] != run.record["attempt"]
    for name in (".running", ".gone", ".aside"):
        for left in (store.folder / name).iterdir():
            counts["left-overs"] += 1
            print(f"left over: {name}/{left.name}", file=sys.stderr)


def attack_store(
    specs: Sequence[RunSpec], *, stops: int, seed: int, folder: Path | None = None
) -> Counter[str]:
    """Attack stores until the given number of stops is reached, and return the counts."""
    rng, counts = random.Random(seed), Counter[str]()
    counts.update(dict.fromkeys(("stuck runs", "wrong files", "left-overs", "crashed"), 0))
    shorten_lease()
    while counts["stops"] < stops:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            one_round(specs, Path(made), rng, counts)
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(told, file=sys.stderr, flush=True)
    return counts


def main() -> None:
    """Attack a store, or run as an attacked process."""
    parser = argparse.ArgumentParser(description="Attack the run store.")
    parser.add_argument("--stops", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--victim", choices=("worker", "planner"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--container", type=int)
    asked = parser.parse_args()
    if asked.victim == "worker":
        attacked_worker(asked.folder / "runs", asked.seed, 0.02, asked.container)
    elif asked.victim == "planner":
        specs = pickle.loads((asked.folder / "specs").read_bytes())
        attacked_planner(asked.folder / "runs", asked.seed, 0.003, specs)
    else:
        write(asked)


def write(asked: argparse.Namespace) -> None:
    """Attack stores and write the counts."""
    from lowrank_study.config.run import compose
    from lowrank_study.provenance import provenance

    specs = [compose(f"seed={seed}") for seed in range(RUNS)]
    began = time.monotonic()
    counts = attack_store(specs, stops=asked.stops, seed=asked.seed)
    facts = {
        "counts": dict(sorted(counts.items())),
        "seed": asked.seed,
        "seconds": round(time.monotonic() - began),
        "lease": {"heartbeat_seconds": HEARTBEAT_SECONDS, "stale_seconds": STALE_SECONDS},
        "processes": {"workers": WORKERS, "planners": PLANNERS},
        "date": time.strftime("%Y-%m-%d"),
        "provenance": provenance(),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "store_attack.json").write_text(json.dumps(facts, indent=1) + "\n")
    rows = [f"| {name} | {count:,} |" for name, count in sorted(counts.items())]
    page = ["| what | count |", "| --- | --- |", *rows, ""]
    (asked.out / "store_attack.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
