"""From the tables of a study to its report: HTML, LaTeX, CSV, SVG and PDF.

    from lowrank_study.reporting.report import write_report
    write_report(study, Path("results/report"))

tables/ condenses, findings/ puts into words, figures/ draws (svg.py colours), shown_tables.py
chooses columns (columns.py words them), contents.py composes, html_report.py and
latex_report.py give the form, report.py writes.
"""
