"""HTML pages that need nothing but themselves, from the templates beside this file.

    text = web_page("report.html.j2", scripts=[packaged("script.html.j2")], report=report)

Style, scripts and drawings are inside the file. A content-security policy forbids it any request
and any script but those, by their hashes, so that even a name that escaped escaping could do
nothing. Text reaches a page through Jinja's autoescape alone.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowrank_study.reporting.display import printable
from lowrank_study.reporting.svg import DARK, LIGHT

_PACKAGE = "lowrank_study.reporting"


def web_page(
    template: str, *, scripts: Sequence[str] = (), more_style: str = "", **values: Any
) -> str:
    """Give a page.

    Args:
        template: Its file's name.
        scripts: Those that may run, `packaged` or from a library.
        more_style: Rules besides those that all pages share.
        values: What the template shows, and functions that it calls.
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
    """Give a style or a script as it stands among the templates."""
    return resources.files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
