"""What this process may use of the machine, and what it holds."""

import ctypes
import os
import platform
import signal
import socket
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PROCESSOR = Path("/proc/cpuinfo")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PR_SET_PDEATHSIG = 1


def free_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores_of_workers(workers: int) -> list[list[int]]:
    """Deal the free cores out to so many processes; with more processes than cores they share."""
    free = free_cores()
    return [free[number::workers] or [free[number % len(free)]] for number in range(workers)]


def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and its instruction sets, as far as the system tells them."""
    fields: dict[str, str] = {}
    if _PROCESSOR.exists():
        for line in _PROCESSOR.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    sets = fields.get("flags") or fields.get("Features") or ""  # x86, Arm
    return fields.get("model name") or platform.processor() or "unknown", frozenset(sets.split())


def has_status() -> bool:
    """Whether the system tells what a process holds (Linux)."""
    return _STATUS.exists()


def status_bytes(field: str) -> int:
    """Return a size from this process's status: `VmRSS` is now, `VmHWM` the most there was."""
    lines = _STATUS.read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def process_space() -> str | None:
    """Return a name of the processes among which a pid is unique; `None` if unknown.

    Containers may share a host name, and machines may share a kernel's namespace number, so the
    name contains both, and the boot.
    """
    try:
        boot, namespace = _BOOT.read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return None
    return f"{socket.gethostname()} {boot} {namespace}"


def is_alive(pid: int) -> bool:
    """Whether a process with that pid exists in this process space."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def end_with_parent(parent: int) -> None:
    """End this process by SIGTERM when its parent ends, in whatever way.

    Only Linux offers this. Elsewhere, `os.getppid()` changes.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent has ended already
        sys.exit(128 + signal.SIGTERM)
