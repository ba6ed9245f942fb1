"""Measure two checkpoints, and print the peak memory beyond that of the interpreter.

`spectra.py` runs this as a separate process:  python peak_memory.py BEFORE AFTER REPORT_FOLDER
"""

import json
import sys
import time

from lowrank_study.machine import status_bytes
from lowrank_study.reporting.spectra_report import report_spectra


def main() -> None:
    """Print the ranks, the memory before and the peak memory in bytes, as JSON."""
    imported = status_bytes("VmRSS")
    start = time.perf_counter()
    _, found = report_spectra(before=sys.argv[1], after=sys.argv[2], out=sys.argv[3])
    ranks = {
        matrix.spectrum.module: matrix.readings["energy_rank_99"].value
        for matrix in found.matrices
        if matrix.state == "changed"
    }
    print(
        json.dumps(
            {
                "interpreter": imported,
                "peak": status_bytes("VmHWM"),
                "seconds": time.perf_counter() - start,
                "matrices": len(found.matrices),
                "ranks": ranks,
            }
        )
    )


if __name__ == "__main__":
    main()
