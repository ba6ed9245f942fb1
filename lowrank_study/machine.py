"""Facts on the machine and its processes: cores, memory, process ids."""

import ctypes
import gc
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS, _MAPS = Path("/proc/self/status"), Path("/proc/self/maps")
_PROCESSOR = Path("/proc/cpuinfo")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_DONTNEED = 4
_GPU_DRIVERS = tuple(Path("/dev", name) for name in ("nvidiactl", "kfd", "dxg"))
"""Device files of the drivers of Nvidia and AMD, and of both under Windows' Linux."""


def free_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores_of_workers(workers: int) -> list[list[int]]:
    """Divide the free cores among processes; with too few cores, processes share them."""
    free = free_cores()
    return [free[number::workers] or [free[number % len(free)]] for number in range(workers)]


def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and instruction sets, if the system reports them."""
    fields: dict[str, str] = {}
    if _PROCESSOR.exists():
        for line in _PROCESSOR.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    sets = fields.get("flags") or fields.get("Features") or ""  # x86, Arm
    return fields.get("model name") or platform.processor() or "unknown", frozenset(sets.split())


def may_have_gpu() -> bool:
    """Return False if there surely is no GPU that torch supports. This is fast, unlike torch."""
    return sys.platform != "linux" or any(driver.exists() for driver in _GPU_DRIVERS)


def has_status() -> bool:
    """Return whether the system reports the memory of a process (Linux does)."""
    return _STATUS.exists()


def status_bytes(field: str) -> int:
    """Return a size from this process's status: `VmRSS` (memory now) or `VmHWM` (its peak)."""
    lines = _STATUS.read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation.

    By default it returns large blocks to the system, which fills them with zeros again: thousands
    of page faults in each training step. Only glibc can be told; elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that is valid
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return freed memory to the system, where the C library can."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def unload(start: int, size: int) -> None:
    """Take the pages of a file that is mapped at an address out of this process's memory.

    A page is read again if it is used. Memory that is no file is left alone, because its content
    would be lost. Only Linux tells which it is; elsewhere this does nothing.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    first, end = -(-start // page) * page, (start + size) // page * page
    if first < end and any(low <= first and end <= high for low, high in _mapped_files()):
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_DONTNEED)


def _mapped_files() -> Iterator[tuple[int, int]]:
    """Yield first and last address of each file that this process has mapped."""
    for line in _MAPS.read_text().splitlines() if _MAPS.exists() else ():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            low, _, high = addresses.partition("-")
            yield int(low, 16), int(high, 16)


def process_space() -> str | None:
    """Return a name of the process namespace, in which a pid is unique; None if unknown.

    Containers may share a host name, and machines may share a kernel's namespace number, so the
    name contains both, and the boot.
    """
    try:
        boot, namespace = _BOOT.read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return None
    return f"{socket.gethostname()} {boot} {namespace}"


def is_alive(pid: int) -> bool:
    """Return whether a process with that pid exists in this process space."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Switch garbage collection off: it takes a fifth of the time of large imports."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that everything ends in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(parent: int) -> None:
    """Send this process SIGTERM as soon as its parent ends.

    Only Linux offers this. Elsewhere, compare `os.getppid()` from time to time.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent has ended already
        sys.exit(128 + signal.SIGTERM)
