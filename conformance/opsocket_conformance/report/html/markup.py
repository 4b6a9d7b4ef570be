"""HTML that can't be injected into: text becomes markup only by way of `tag`, which escapes all that isn't markup yet.

tag("td", tag("code", case["id"]), " and more", class_="right")
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from opsocket_conformance.report.text import printable

_VOID: Final = {"meta", "input", "br", "line", "rect", "path"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | Iterable["Content"]
"""Text to be escaped, markup, a number, or several of these."""
Attribute = str | int | float | bool


def render(content: Content) -> Markup:
    """Content as markup."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(printable(content)))
    if isinstance(content, int):
        return Markup(f"{content:,}".replace(",", "\u202f"))
    return Markup("".join(map(render, content)))


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """An element. `class_` is class, `aria_label` is aria-label; True is an attribute without a value, False none."""
    opened = "".join(_attribute(key, value) for key, value in attributes.items() if value is not False)
    if name in _VOID:
        return Markup(f"<{name}{opened}>" if name in ("meta", "input", "br") else f"<{name}{opened}/>")
    return Markup(f"<{name}{opened}>{render(content)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    if isinstance(value, float):
        value = f"{value:.4g}"
    return f' {key}="{html.escape(printable(str(value)))}"'


def section(id: str, title: str, *content: Content) -> Markup:
    """One part of the page, which its table of contents names."""
    return tag("section", tag("h2", title, id=f"{id}-title"), *content, id=id, aria_labelledby=f"{id}-title")


def table(
    caption: str, columns: Sequence[Content], rows: Iterable[Sequence[Content]], *, numeric: Iterable[int] = ()
) -> Markup:
    """A table whose first column names its rows. It scrolls by itself where the screen is narrower than it is.

    numeric: the columns of numbers, which stand to the right.
    """
    right = set(numeric)
    head = [tag("th", c, scope="col", class_="n" if i in right else False) for i, c in enumerate(columns)]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            [tag("td", c, class_="n" if i in right else False) for i, c in enumerate(row[1:], 1)],
        )
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)


def details(summary: Content, *content: Content, open_: bool = False) -> Markup:
    """What is shown when asked for."""
    return tag("details", tag("summary", summary), *content, open=open_)


def note(*content: Content) -> Markup:
    return tag("p", *content, class_="note")


def code(text: str) -> Markup:
    return tag("code", text)


def ids(case_ids: Sequence[str], most: int = 3) -> Markup:
    """A few case ids, and how many more there are."""
    shown = [tag("li", code(id)) for id in case_ids[:most]]
    if len(case_ids) > most:
        shown.append(tag("li", f"and {len(case_ids) - most} more", class_="muted"))
    return tag("ul", shown, class_="ids")
