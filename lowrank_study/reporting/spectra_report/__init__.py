"""The report on measured updates: one HTML page to explore, and data files.

    path, found = report_spectra(before="base", after="tuned", out="report")

corresponds to `python analysis/measure_spectra.py before=base after=tuned out=report`.
"""

from lowrank_study.reporting.spectra_report.progress import progress_shown, tell_left_out
from lowrank_study.reporting.spectra_report.write import report_measurement, report_spectra

__all__ = ["progress_shown", "report_measurement", "report_spectra", "tell_left_out"]
