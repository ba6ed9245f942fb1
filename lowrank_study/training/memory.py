"""Peak memory of a run: of the GPU where it trains on one, else of the process.

A worker process trains many runs. Before each, what the last one left is given back to the
system and the high-water mark is set back (Linux), so that a run's number is its own.
"""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_C_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak_memory(device: torch.device) -> None:
    """Free what can be freed, and start measuring anew where the system can."""
    gc.collect()
    if _C_LIBRARY is not None and hasattr(_C_LIBRARY, "malloc_trim"):
        _C_LIBRARY.malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        try:
            _RESET.write_text("5")
        except OSError:  # not permitted in some containers: the mark is then the process's own
            return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory held since the last reset, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
