r"""The report for LaTeX: `report.tex` with booktabs tables and PDF figures in files of their own.

    latex_table(table)       # one longtable, for \input
    latex_of(report)         # a document that compiles with pdfLaTeX, XeLaTeX or LuaLaTeX

It uses only packages of a basic TeX distribution: booktabs, longtable, graphicx, geometry.
"""

import re

from lowrank_study.reporting.composition import Report
from lowrank_study.reporting.display import MISSING, Kind, Table, printable, written
from lowrank_study.reporting.section import Section

ROWS_SET = 400
"""Longer tables are shortened and say so; the CSV files have all rows."""

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_\allowbreak{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "–": "--", "−": "$-$", "×": r"$\times$",
    "±": r"$\pm$", "·": r"$\cdot$", "√": r"$\surd$", "‖": r"$\|$", "≈": r"$\approx$",
    "∞": r"$\infty$", "²": r"\textsuperscript{2}", "⁴": r"\textsuperscript{4}", "α": r"$\alpha$",
    "φ": r"$\varphi$", "σ": r"$\sigma$", "Σ": r"$\Sigma$", "Δ": r"$\Delta$", "β": r"$\beta$",
    "₀": r"$_0$", "₁": r"$_1$", "ᵀ": r"\textsuperscript{T}", "ᵢ": r"$_i$", "“": "``", "”": "''",
    "’": "'", "…": r"\ldots{}", "\u202f": r"\,", "\u00a0": "~",
}  # fmt: skip


def escaped(text: object) -> str:
    """Escape text for LaTeX; characters that basic fonts lack become their code points."""
    return "".join(_ESCAPES.get(character) or _plain(character) for character in printable(text))


def _plain(character: str) -> str:
    if ord(character) < 0x180:
        return character
    return f"[U+{ord(character):04X}]"


def latex_table(table: Table) -> str:
    """Return a table as a booktabs longtable with its shown columns."""
    alignment = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    heading = " & ".join(escaped(column.label) for column in table.columns)
    kinds = [column.kind for column in table.columns]
    rows = [" & ".join(map(_cell, row, kinds)) for row in table.rows(ROWS_SET)]
    note = table.note
    if len(table.frame) > len(rows):
        note += f" The first {len(rows)} of {len(table.frame)} rows are shown."
    return "\n".join(
        [
            f"% {_comment(table.name)}.csv has every column, exact.",
            rf"\begin{{longtable}}{{@{{}}{alignment}@{{}}}}",
            rf"\caption{{{escaped(table.title)}. {escaped(note)}}}\label{{tab:{table.name}}}\\",
            r"\toprule",
            rf"{heading} \\",
            r"\midrule",
            r"\endfirsthead",
            r"\toprule",
            rf"{heading} \\",
            r"\midrule",
            r"\endhead",
            r"\bottomrule",
            r"\endlastfoot",
            # The braces keep a cell that starts with a bracket from becoming an argument of \\.
            *(rf"{{}}{row} \\" for row in rows),
            r"\end{longtable}",
            "",
        ]
    )


def _cell(value: object, kind: Kind) -> str:
    text = written(value, kind)
    return "--" if text == MISSING else escaped(text)


def _comment(text: str) -> str:
    return re.sub(r"[^\w./-]", "?", text)


def latex_of(report: Report) -> str:
    """Return the document that includes every table and figure."""
    study = report.study
    lines = [
        r"\documentclass[11pt,a4paper]{article}",
        r"\usepackage{iftex}",
        r"\ifpdftex\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\fi",
        r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",
        r"\usepackage{textcomp,booktabs,longtable,graphicx,pdflscape}",
        r"\usepackage[margin=22mm]{geometry}",
        r"\setlength{\emergencystretch}{3em}",
        r"\setlength{\LTcapwidth}{\linewidth}",
        rf"\title{{{escaped(study.title)}}}",
        r"\author{}\date{}",
        r"\begin{document}",
        r"\maketitle",
        rf"\noindent\emph{{{escaped(study.question)}}}",
        r"\section*{Answer}",
        *map(escaped, report.gaps_first),
    ]
    for part in report.parts:
        if part.name:
            lines.append(rf"\subsection*{{{escaped(part.name)}}}")
        lines += _list("itemize", [rf"\item {escaped(line)}" for line in part.answer])
    for part in report.parts:
        for section in part.sections:
            lines += _section(section, part.name)
    if report.is_complete:
        lines += [r"\section*{Provenance}", escaped(report.completeness.text)]
    lines += [r"\clearpage", r"\begin{landscape}", r"\scriptsize", r"\setlength{\tabcolsep}{3pt}"]
    tables = [table for section in report.sections for table in section.tables]
    lines += [
        rf"\input{{tables/{table.name}.tex}}"
        for table in [*tables, *report.tables]
        if len(table.frame)
    ]
    lines += [r"\end{landscape}", r"\end{document}", ""]
    return "\n".join(lines)


def _section(section: Section, part: str) -> list[str]:
    heading = f"{section.title} ({part})" if part else section.title
    lines = [rf"\section*{{{escaped(heading)}}}"]
    for figure in section.figures:
        lines += [
            r"\begin{figure}[htbp]",
            r"\centering",
            rf"\includegraphics[width=\linewidth]{{figures/{figure.name}.pdf}}",
            rf"\caption{{\textbf{{{escaped(figure.title)}.}} {escaped(figure.caption)}}}",
            rf"\label{{fig:{figure.name}}}",
            r"\end{figure}",
        ]
    found = [rf"\item[{{{escaped(item.topic)}}}] {escaped(item.text)}" for item in section.findings]
    lines += _list("description", found)
    if section.reading:
        lines += [r"\paragraph{How to read this}", r"\begin{small}"]
        lines += _list("itemize", [rf"\item {escaped(text)}" for text in section.reading])
        lines.append(r"\end{small}")
    return lines


def _list(environment: str, items: list[str]) -> list[str]:
    """Return a LaTeX list, or nothing without items: LaTeX refuses an empty one."""
    if not items:
        return []
    return [rf"\begin{{{environment}}}", *items, rf"\end{{{environment}}}"]
