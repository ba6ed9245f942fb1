"""Facts on the machine, and settings of the process."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowrank_study import machine

FAULTS = """
import ctypes, resource
from lowrank_study import machine
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**22))) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 2**22)
    for block in blocks:
        libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


RETURNED = """
import ctypes
from lowrank_study import machine
machine.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = machine.status_bytes("VmRSS")
blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**22))) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, 2**22)
for block in blocks:
    libc.free(block)
print(machine.status_bytes("VmRSS") - before)
machine.return_freed_memory()
print(machine.status_bytes("VmRSS") - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(first: str) -> int:
        command = [sys.executable, "-c", FAULTS.format(first=first)]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert faults("machine.keep_freed_memory()") < 100
    assert faults("pass") > 10_000


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux reports mapped pages")
def test_a_file_is_unloaded_and_read_again_and_other_memory_stays(tmp_path: Path) -> None:
    stored = np.arange(2**19, dtype=np.float64)
    stored.tofile(tmp_path / "stored")
    mapped = np.memmap(tmp_path / "stored", dtype=np.float64, mode="c")

    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text()
        [rss] = [
            line
            for line in smaps.partition(str(tmp_path / "stored"))[2].splitlines()[:9]
            if line.startswith("Rss:")
        ]
        return int(rss.split()[1]) * 1024

    assert mapped.sum() == stored.sum()
    assert resident() == stored.nbytes
    half = stored.nbytes // 2
    machine.unload(mapped.ctypes.data + 100, half)
    assert resident() <= half + 4096  # the first page is only partly in the range
    np.testing.assert_array_equal(mapped, stored)
    own = stored.copy()
    machine.unload(own.ctypes.data, own.nbytes)
    np.testing.assert_array_equal(own, stored)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_returned_to_the_system() -> None:
    command = [sys.executable, "-c", RETURNED]
    kept, left = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert kept > 2**25 > 8 * left
