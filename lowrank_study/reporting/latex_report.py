r"""The report for LaTeX: `report.tex`, with a booktabs table and a PDF figure a file.

    latex_table(table)       # one longtable, for \input
    latex_of(report)         # a document that compiles with pdfLaTeX, XeLaTeX or LuaLaTeX

Only packages of a basic TeX distribution are used: booktabs, longtable, graphicx, geometry.
"""

import re

from lowrank_study.reporting.contents import Report
from lowrank_study.reporting.display import MISSING, Table, printable, written
from lowrank_study.reporting.findings import Finding

ROWS_SET = 400
"""Longer tables are cut, and say so; the CSV files hold all rows."""

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_\allowbreak{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "√": r"$\surd$",
    "‖": r"$\|$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "²": r"\textsuperscript{2}",
    "⁴": r"\textsuperscript{4}",
    "α": r"$\alpha$",
    "φ": r"$\varphi$",
    "σ": r"$\sigma$",
    "Σ": r"$\Sigma$",
    "Δ": r"$\Delta$",
    "β": r"$\beta$",
    "₀": r"$_0$",
    "₁": r"$_1$",
    "ᵀ": r"\textsuperscript{T}",
    "ᵢ": r"$_i$",
    "“": "``",
    "”": "''",
    "’": "'",
    "…": r"\ldots{}",
    "\u202f": r"\,",
    "\u00a0": "~",
}


def escaped(text: object) -> str:
    """Write text so that LaTeX sets it as it stands; what no basic font has, as its code."""
    return "".join(_ESCAPES.get(character) or _plain(character) for character in printable(text))


def _plain(character: str) -> str:
    if ord(character) < 0x180:
        return character
    return f"[U+{ord(character):04X}]"


def latex_table(table: Table) -> str:
    """Give a table as a booktabs longtable, the shown columns rounded as shown."""
    alignment = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    heading = " & ".join(escaped(column.label) for column in table.columns)
    names = [column.name for column in table.columns]
    shown = table.frame[names].head(ROWS_SET)
    rows = [
        " & ".join(
            _cell(value, column.kind) for value, column in zip(row, table.columns, strict=True)
        )
        for row in shown.itertuples(index=False, name=None)
    ]
    note = table.note
    if len(table.frame) > len(shown):
        note += f" The first {len(shown)} of {len(table.frame)} rows are set."
    return "\n".join(
        [
            f"% {_comment(table.name)}.csv holds every column, exact.",
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
            # The braces keep a name that begins with a bracket from being an argument of \\.
            *(rf"{{}}{row} \\" for row in rows),
            r"\end{longtable}",
            "",
        ]
    )


def _cell(value: object, kind: str) -> str:
    text = written(value, kind)  # type: ignore[arg-type]  # zip has lost the literal
    return "--" if text == MISSING else escaped(text)


def _comment(text: str) -> str:
    return re.sub(r"[^\w./-]", "?", text)


def latex_of(report: Report) -> str:
    """Give the document that includes every table and figure."""
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
        r"\section*{Key findings}",
        *_findings([report.completeness]),
    ]
    single = len(report.parts) == 1
    for part in report.parts:
        name = f"{part.setting.task}, {part.setting.model}"
        if not single:
            lines.append(rf"\subsection*{{{escaped(name)}}}")
        lines += _findings(part.findings)
    for part in report.parts:
        name = f"{part.setting.task}, {part.setting.model}"
        lines.append(r"\section*{Figures}" if single else rf"\section*{{Figures: {escaped(name)}}}")
        for figure in part.figures:
            lines += [
                r"\begin{figure}[htbp]",
                r"\centering",
                rf"\includegraphics[width=\linewidth]{{figures/{figure.name}.pdf}}",
                rf"\caption{{\textbf{{{escaped(figure.title)}.}} {escaped(figure.caption)}}}",
                rf"\label{{fig:{figure.name}}}",
                r"\end{figure}",
            ]
        lines.append(r"\clearpage")
    lines += [r"\begin{landscape}", r"\scriptsize", r"\setlength{\tabcolsep}{3pt}"]
    tables = [table for part in report.parts for table in part.tables] + report.tables
    lines += [rf"\input{{tables/{table.name}.tex}}" for table in tables if len(table.frame)]
    lines += [r"\end{landscape}", r"\end{document}", ""]
    return "\n".join(lines)


def _findings(items: list[Finding]) -> list[str]:
    return [
        r"\begin{description}",
        *(rf"\item[{{{escaped(item.topic)}}}] {escaped(item.text)}" for item in items),
        r"\end{description}",
    ]
