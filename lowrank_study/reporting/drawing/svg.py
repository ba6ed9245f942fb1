"""One drawing for every colour scheme: matplotlib's SVG with its colours made into variables.

A figure is drawn once, in the light scheme's colours. Each colour stands for a role (`ink`, `grid`,
`series-1`, ...), so the same drawing becomes

* inline SVG for the page, where `#1f2328` becomes `var(--ink)` and the style sheet decides, with
  ids that no other drawing uses;
* a file per scheme, in the scheme's own colours;
* PDF, in the light scheme.

The output does not depend on the time or on chance.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text

_LEVELS = (
    ("#f0f5fa", "#1b242d"), ("#d9e7f3", "#1d3145"), ("#bfd8eb", "#1f3f5d"),
    ("#9cc4e2", "#225078"), ("#72acd5", "#266395"), ("#2f76b3", "#68a9df"),
    ("#1e5f9c", "#86bce8"), ("#134a80", "#a5cff0"), ("#0a3563", "#c6e2f8"),
)  # fmt: skip
_DEPTHS = (
    ("#c9a227", "#4a4fd0"), ("#b98a2e", "#6a58c4"), ("#a5733a", "#8463bb"),
    ("#8f5d48", "#9b70b0"), ("#784a57", "#b07fa3"), ("#603a66", "#c48f93"),
    ("#482c73", "#d6a180"), ("#31217a", "#e7b567"), ("#1b1878", "#f6cc49"),
)  # fmt: skip
_COLOURS = {
    "paper": ("#fdfdfc", "#14171a"),
    "ink": ("#1c2024", "#e7e9ea"),
    "faint": ("#626b74", "#9aa3ab"),
    "grid": ("#e4e6e8", "#2b3035"),
    "band": ("#d5d9de", "#3a4148"),
    "lost": ("#b3261e", "#ff8a80"),
    "series-1": ("#1a66b0", "#6db3f2"),
    "series-2": ("#c04f00", "#f5a15c"),
    "series-3": ("#127a5a", "#5fcba3"),
    "series-4": ("#8a3fa0", "#d29be6"),
    "series-5": ("#946400", "#e3c15b"),
    "series-6": ("#5a5f66", "#b4bac0"),
    **{f"level-{level}": (light, dark) for level, (light, dark) in enumerate(_LEVELS)},
    "on-low": ("#14181b", "#f4f6f7"),
    "on-high": ("#fefefe", "#0d1013"),
    **{f"depth-{depth}": (light, dark) for depth, (light, dark) in enumerate(_DEPTHS)},
}
LIGHT: Mapping[str, str] = {role: light for role, (light, _) in _COLOURS.items()}
DARK: Mapping[str, str] = {role: dark for role, (_, dark) in _COLOURS.items()}
"""Series also differ in lightness, for readers with a colour-vision deficiency. `level` is for
filled cells (with `on-low` or `on-high` text), `depth` for lines by layer."""

LEVELS = 9
SERIES = 6
LEVEL_TEXT = tuple("on-low" if level < 5 else "on-high" for level in range(LEVELS))

_ROLE_OF = {colour: role for role, colour in LIGHT.items()}
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_DECIMAL = re.compile(r"-?\d+\.\d+")
_FONT = re.compile(r"font-family: [^;]*")
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "font.family": ["DejaVu Sans"],
    "text.parse_math": False, "axes.unicode_minus": True, "path.simplify": True,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": LIGHT["grid"],
    "axes.linewidth": 0.8, "grid.linewidth": 0.7, "lines.linewidth": 1.6,
    "hatch.linewidth": 0.7, "xtick.major.size": 3, "ytick.major.size": 0,
}  # fmt: skip
"""What all drawings share, beside font sizes and the colours of text and axes."""


@contextmanager
def drawing_style(font_size: float, salt: str) -> Iterator[None]:
    """Set matplotlib up for one drawing and restore its settings afterwards."""
    sizes = "font.size axes.titlesize axes.labelsize xtick.labelsize ytick.labelsize"
    faint = "axes.labelcolor axes.edgecolor xtick.color ytick.color hatch.color"
    clear = "axes.facecolor figure.facecolor savefig.facecolor"
    style = {
        **dict.fromkeys([*sizes.split(), "legend.fontsize"], font_size),
        **dict.fromkeys(faint.split(), LIGHT["faint"]),
        **dict.fromkeys(["text.color", "axes.titlecolor"], LIGHT["ink"]),
        **dict.fromkeys(clear.split(), "none"),
        **_STYLE,
        "svg.hashsalt": salt,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # Names may have characters that this font lacks; the SVG keeps them as text, which the
        # reader's fonts show.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def drawn(draw: Callable[[Canvas], None], *, width: float) -> Canvas:
    """Return a laid-out canvas, `width` inches wide, after `draw` has drawn on it.

    `draw` sets the height. Call this inside `drawing_style`.
    """
    # SVG and PDF have 72 units per inch, so text is measured as it will be written.
    canvas = Canvas(figsize=(width, width), dpi=72, layout="constrained")
    draw(canvas)
    engine = canvas.get_layout_engine()
    assert engine is not None
    engine.execute(canvas)
    canvas.set_layout_engine("none")  # otherwise each format lays the canvas out again
    return canvas


def svg_of(canvas: Canvas) -> str:
    """Return matplotlib's SVG of a canvas, without a date."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().decode()


def pdf_of(canvas: Canvas) -> bytes:
    """Return the canvas as PDF, without a date, in one weight: a second font is slow to embed."""
    for text in canvas.findobj(Text):
        text.set_fontweight("normal")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def inline_svg(svg: str, *, name: str, label: str) -> str:
    """Make matplotlib's SVG part of a page, with colours as variables and unique ids.

    Args:
        svg: Output of `svg_of`.
        name: Prefix of every id, so that drawings on one page don't share any.
        label: Text that screen readers read in place of the drawing.
    """
    root = _tree(svg)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        link = element.attrib.pop(_LINK, None)
        if link is not None:
            element.set("href", f"#{name}-{link.removeprefix('#')}")
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.attrib['id']}")
        for key, value in element.attrib.items():
            if "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    for parent in list(root.iter("defs")):
        for style in parent.findall("style"):
            parent.remove(style)
    _recolour(root, {role: f"var(--{role})" for role in LIGHT}, family="inherit")
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.set("viewBox", view)
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def file_svg(svg: str, scheme: Mapping[str, str]) -> str:
    """Make matplotlib's SVG a file in one colour scheme, on that scheme's background."""
    root = _tree(svg)
    _recolour(root, scheme, family=_FAMILY)
    paper = ET.Element(f"{_SVG}rect", {"width": "100%", "height": "100%"})
    paper.set("style", f"fill: {scheme['paper']}")
    root.insert(0, paper)
    ET.register_namespace("", _SVG.strip("{}"))
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _tree(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    return root


def _recolour(root: ET.Element, scheme: Mapping[str, str], family: str) -> None:
    def colour(match: re.Match[str]) -> str:
        role = _ROLE_OF.get(match[0])
        return match[0] if role is None else scheme[role]

    for element in root.iter():
        for key in ("style", "fill", "stroke"):
            value = element.get(key)
            if value is not None:
                value = _COLOUR.sub(colour, value)
                element.set(key, _FONT.sub(f"font-family: {family}", value))
        for key in ("d", "x", "y", "transform"):
            value = element.get(key)
            if value is not None:
                element.set(key, _DECIMAL.sub(_rounded, value))
        # Line ends between elements mean nothing; those inside text belong to it.
        if element.text and not element.text.strip():
            element.text = None
        if element.tail and not element.tail.strip():
            element.tail = None


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
