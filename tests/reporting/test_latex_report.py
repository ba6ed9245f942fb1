"""Text in LaTeX."""

from lowrank_study.reporting.latex_report import escaped


def test_latex_takes_every_character_as_it_stands() -> None:
    assert escaped(r"a_b\c{d}$&#%^~") == (
        r"a\_\allowbreak{}b\textbackslash{}c\{d\}\$\&\#\%\textasciicircum{}\textasciitilde{}"
    )
    assert escaped("α=2r, φ, Σσ⁴") == r"$\alpha$=2r, $\varphi$, $\Sigma$$\sigma$\textsuperscript{4}"
    assert escaped("中\u202e") == r"[U+4E2D]\textbackslash{}u202e"
    assert escaped("90\u202f% of ΔW") == r"90\,\% of $\Delta$W"
