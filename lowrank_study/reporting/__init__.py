"""From the tables of a study to its report: HTML, LaTeX, CSV, SVG and PDF.

    from lowrank_study.reporting.report import write_report
    write_report(study, Path("results/report"))

tables.py condenses, findings.py puts into words, figures.py draws (svg.py colours),
html_report.py and latex_report.py give the form, report.py writes.
"""
