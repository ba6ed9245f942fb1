"""From the tables of a study to its report: HTML, LaTeX, CSV, SVG and PDF.

    from lowrank_study.reporting.report import write_report
    write_report(study, Path("results/report"))

`study.py` checks the tables, `setting.py` condenses them, `sections/` has one file a question,
`drawing/` what figures are drawn with, `composition.py` puts the sections in order, and
`html_report.py`, `latex_report.py` and `record.py` give them a form.
"""
