"""Peak memory of a run: of the GPU where it trains on one, else of the process.

A worker process trains many runs; its high-water mark is set back before each (Linux).
"""

import resource
import sys
from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew, where the system can."""
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
