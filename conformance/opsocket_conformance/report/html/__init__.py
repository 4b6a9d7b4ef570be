"""The report as one HTML file that needs nothing else: no network, no framework, and no script to be read.

What a stranger's report says is text and stays text: `markup` escapes it, and the page's own policy lets a browser run
no script and load no style but the two that are in it, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from opsocket_conformance.report.html.cases import failures, table_of_cases
from opsocket_conformance.report.html.gaps import gaps
from opsocket_conformance.report.html.ladder import ladder
from opsocket_conformance.report.html.markup import Markup, tag
from opsocket_conformance.report.html.power import coverage, filters, kill_matrix
from opsocket_conformance.report.html.ratios import ratios
from opsocket_conformance.report.html.speed import speed
from opsocket_conformance.report.html.summary import head, provenance, title
from opsocket_conformance.report.html.support import matrix, profiles

_PARTS = (
    ("failures", "Failures", failures),
    ("ladder", "Without the chip", ladder),
    ("profiles", "Profiles", profiles),
    ("support", "Support", matrix),
    ("ratios", "Error ratios", ratios),
    ("filters", "Matched filters", filters),
    ("coverage", "Coverage", coverage),
    ("power", "Power", kill_matrix),
    ("speed", "Speed", speed),
    ("gaps", "Not run", gaps),
    ("cases", "Cases", table_of_cases),
    ("provenance", "Provenance", provenance),
)


def html(report: dict[str, Any]) -> str:
    """The whole page. A part that the report has nothing for is not there."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    parts = [(id, name, part) for id, name, make in _PARTS if (part := make(report))]
    links = [tag("li", tag("a", name, href=f"#{id}")) for id, name, _ in parts]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title(report)),
            tag("style", Markup(style)),
        ),
        tag(
            "body",
            head(report),
            tag("nav", tag("ul", links), aria_label="Parts of this page"),
            tag("main", [part for _, _, part in parts]),
            tag("script", Markup(script)),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


@cache
def _asset(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
