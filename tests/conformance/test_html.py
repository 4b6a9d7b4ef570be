"""The HTML page: well formed, self-contained, complete; and whatever a stranger's report holds stays text."""

from __future__ import annotations

import copy
import html as stdlib
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsocket.operators import FormatError
from opsocket_conformance.compare import compare
from opsocket_conformance.report import data, terminal
from opsocket_conformance.report.badge import badge
from opsocket_conformance.report.html import html
from opsocket_conformance.report.junit import junit
from opsocket_conformance.report.markdown import markdown
from opsocket_conformance.report.reading import load, schema
from opsocket_conformance.report.text import printable, rerun
from opsocket_conformance.verify import wholeness

VOID = {"meta", "input", "br"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' \x1b[31m\x00 \u202e \ud800 `|` &lt;"


class Page(HTMLParser):
    """A page's skeleton: is every element closed, and what does it hold."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        self.words.append(text)

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def report(make_report):
    """Green, with a power and a speed section."""
    found = make_report("chunk")
    ids = [case["id"] for case in found["cases"]]
    faults = {"killed": ids[:4], "weak": ids[:1], "survived": [], "not run": []}
    found["power"] = [
        {"fault": v, "category": "mask", "operator": "attention", "wrong": "x", "ran": 9, "kills": k, "seconds": 1.0,
         "verdict": v}
        for v, k in faults.items()
    ]  # fmt: skip
    found["speed"] = [
        {"case": ids[0], "operator": "attention", "seconds": 1e-4, "bytes": 10**6, "gb_s": 10.0, "fraction_of_limit": f}
        for f in (0.5, None)
    ]
    return data.seal(found)


@pytest.fixture(scope="module")
def red(report):
    """A report with every verdict in it, and with markup and control characters wherever there is text."""
    other = copy.deepcopy(report)
    for index, verdict in enumerate(["FAIL", "CRASH", "UNSUPPORTED", "EXCLUDED", "NOT_RUN"]):
        reasons = [{"code": EVIL, "field": EVIL, "got": EVIL, "want": [EVIL]}]
        other["cases"][index].update(
            id=f"{EVIL}{index}", operator=EVIL, verdict=verdict, messages=[EVIL], reasons=reasons, provider=EVIL
        )
    other["cases"][0]["ratio"] = 1e308
    other["verdict"] = {"green": False, "reason": EVIL}
    other["device"]["name"] = other["backend"]["name"] = other["run"]["backend"] = other["host"][EVIL] = EVIL
    other["operators"][0]["operator"] = other["profiles"][0]["name"] = other["power"][0]["fault"] = EVIL
    other["profiles"][1].update(verdict="not held", by=[], missing=[f"{EVIL}0"])
    return data.seal(other)


def test_the_page_is_well_formed_and_its_ids_are_unique(report, red):
    for page in (Page(html(report)), Page(html(red))):
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        links = [value for tag, key, value in page.attributes if (tag, key) == ("a", "href")]
        assert {link.removeprefix("#") for link in links} <= set(ids)
        labelled = [value for key in ("aria-labelledby",) for value in page.values(key)]
        assert set(labelled) <= set(ids)
        assert (
            page.tags.count("h1")
            == page.tags.count("main")
            == page.tags.count("title")
            - page.tags.count("svg")
            + (page.tags.count("svg") - (page.tags.count("title") - 1))
        )


def test_the_page_needs_nothing_else(report, red):
    for text in (html(report), html(red)):
        page = Page(text)
        assert not {"link", "img", "iframe", "object", "embed", "base", "form action"} & set(page.tags)
        assert not {"src", "srcset", "action", "style"} & {key for _, key, _ in page.attributes}
        assert not re.search(r"https?:|url\(|@import", text)
        assert page.tags.count("script") == page.tags.count("style") == 1
        (policy,) = [value for _, key, value in page.attributes if key == "content" and "default-src" in (value or "")]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_every_table_is_named_and_its_heads_have_a_scope(report):
    page = Page(html(report))
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.tags.count("th") == len([1 for tag, key, _ in page.attributes if (tag, key) == ("th", "scope")])


def test_every_case_and_every_part_is_there(report):
    text = html(report)
    page = Page(text)
    words = "".join(page.words)
    assert all(case["id"] in words for case in report["cases"])
    parts = {"profiles", "support", "ratios", "filters", "coverage", "power", "speed", "gaps", "cases", "provenance"}
    assert parts <= set(page.values("id"))
    assert "failures" not in page.values("id")
    assert "1 of 4 faults killed" in words
    for profile in report["profiles"]:
        assert profile["name"] in words


def test_a_failure_is_shown_with_its_message_and_its_command(red):
    words = "".join(Page(html(red)).words)
    assert "Failures: 2" in words
    assert printable(EVIL) in words
    assert rerun(red, red["cases"][0]["id"]) in words


def test_a_page_of_thousands_stays_small(report):
    case = max(report["cases"], key=lambda case: len(case["id"]))
    for verdict, messages in (("PASS", []), ("CRASH", ["Traceback\n" + "  File x\n" * 800])):
        cases = [case | {"id": f"{case['id']}{n}", "verdict": verdict, "messages": messages} for n in range(3700)]
        assert len(html(report | {"cases": cases}).encode()) < 1_700_000


def test_text_that_would_act_is_only_shown(red):
    for text in (html(red), badge(red), markdown(red), junit(red), "\n".join(terminal.lines(red))):
        text.encode("utf-8")
        assert all(c.isprintable() or c in "\n\t\u202f" for c in text)
    assert "<script>alert" not in html(red).lower()
    outside_code = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", markdown(red))
    assert "<img" not in html(red) + badge(red) + outside_code
    ElementTree.fromstring(badge(red))
    ElementTree.fromstring(junit(red).encode())


# ---- reports from strangers


def test_a_report_is_read_as_it_was_written(report, red, tmp_path):
    file = tmp_path / "r.json"
    for one in (report, red):
        file.write_text(json.dumps(one))
        assert load(file) == one


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"schema": true}',
        '{"schema": 2}',
        "[" * 100_000,
        '{"schema": 1, "schema": 1}',
        '{"schema": NaN}',
        '{"schema": 1e999}',
        '{"schema": ' + "9" * 5000 + "}",
        '"\ud800"',
        b"\xff\xfe",
        b"\x00" * 100,
    ],
)
def test_what_is_no_report_is_refused(text, tmp_path):
    file = tmp_path / "r.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FormatError):
        load(file)
    with pytest.raises(FormatError):
        load(tmp_path / "none.json")
    with pytest.raises(FormatError):
        load("a\0b")


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


TEXT = st.sampled_from([EVIL, "", "PASS", "held", "x" * 600, "0/0", "9/2", "smoke", "attention[]#0", "\n"])
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**40), 10**40), st.sampled_from([0, 1, -1, 2**63 - 1, 1e308, -1e308]),
    st.floats(allow_nan=False, allow_infinity=False), TEXT,
)  # fmt: skip
DEEP = st.integers(1, 60).map(lambda n: json.loads("[" * n + "]" * n))
VALUE = st.one_of(SCALAR, DEEP, st.lists(SCALAR, max_size=3), st.dictionaries(TEXT, SCALAR, max_size=3))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choice=st.data())
def test_a_hostile_report_is_refused_or_shown_and_never_breaks_anything(report, tmp_path, choice):
    hostile = copy.deepcopy(report | {"cases": report["cases"][:4]})
    spots = sorted(places(hostile), key=str)
    for _ in range(choice.draw(st.integers(1, 3))):
        *path, last = choice.draw(st.sampled_from([spot for spot in spots if spot]))
        at = hostile
        try:
            for key in path:
                at = at[key]
            if choice.draw(st.booleans()):
                at[last] = choice.draw(VALUE)
            else:
                del at[last]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    file = tmp_path / "r.json"
    file.write_text(json.dumps(hostile))
    try:
        loaded = load(file)
    except FormatError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.isprintable()
        return
    jsonschema.validate(loaded, schema())
    page = Page(html(loaded))
    assert page.tags.count("script") == 1
    ElementTree.fromstring(badge(loaded))
    ElementTree.fromstring(junit(loaded).encode())
    markdown(loaded).encode()
    "\n".join(terminal.lines(loaded)).encode()
    assert all(printable(str(change)).encode() for change in compare(report, loaded))
    assert wholeness(loaded)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_escaping_gives_back_what_was_put_in(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert stdlib.unescape(stdlib.escape(shown)) == shown
    if text.isprintable():
        assert shown == text
