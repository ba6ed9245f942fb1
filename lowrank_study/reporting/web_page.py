"""Self-contained HTML pages, made from the templates beside this file.

    text = web_page("report.html.j2", scripts=[packaged("script.html.j2")], report=report)

Style, scripts and drawings are inside the file. A content-security policy forbids every request and
every script but those, by their hashes, so a name that escaped escaping could do nothing. Text
reaches a page only through Jinja's autoescape.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowrank_study.reporting.display import printable
from lowrank_study.reporting.drawing.svg import DARK, LIGHT

_PACKAGE = "lowrank_study.reporting"


def web_page(
    template: str, *, scripts: Sequence[str] = (), more_style: str = "", **values: Any
) -> str:
    """Return a page.

    Args:
        template: File name of the template.
        scripts: Scripts that may run, `packaged` or from a library.
        more_style: Rules beyond those that all pages share.
        values: Values and functions that the template uses.
    """
    environment = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment.get_template(template).render(
        style=Markup(packaged("style.html.j2") + more_style),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        light=LIGHT,
        dark=DARK,
        **values,
    )


def packaged(name: str) -> str:
    """Return a style or a script from the templates."""
    return resources.files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
