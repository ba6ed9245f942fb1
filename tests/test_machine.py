"""Facts on the machine, and settings of the process."""

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(first: str) -> int:
        command = [sys.executable, "-c", FAULTS.format(first=first)]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert faults("machine.keep_freed_memory()") < 100
    assert faults("pass") > 10_000
