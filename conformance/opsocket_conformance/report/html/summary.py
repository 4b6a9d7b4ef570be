"""The head of the page, which says the verdict and what it is worth, and its foot, which says where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opsocket_conformance.report.html.cases import command
from opsocket_conformance.report.html.markup import Content, Markup, code, note, section, tag
from opsocket_conformance.report.text import ARTIFACT, NUMERICS, command_of, ratio


def head(report: Mapping[str, Any]) -> Markup:
    """Verdict, evidence and the figures that matter."""
    device, backend = report["device"], report["backend"]
    return tag(
        "header",
        tag("p", "opsocket conformance", class_="kicker"),
        tag("h1", f"{backend['name']} on {device['name']}"),
        tag(
            "p",
            f"{device['id']}, {device['arch']}; backend {backend['name']} {backend['version']}; ",
            f"tier {report['run']['tier']}, {report['run']['started']}",
            class_="muted",
        ),
        _banner(report),
        tag("dl", [_tile(*figure) for figure in _figures(report)], class_="tiles"),
    )


def _banner(report: Mapping[str, Any]) -> Markup:
    evidence, green = report["evidence"], report["verdict"]["green"]
    real = evidence["numerics"] == "device"
    style = ("ok" if real else "partial") if green else "red"
    words = "Green: everything that ran is right" if green else f"Red: {report['verdict']['reason']}"
    return tag(
        "div",
        tag("p", tag("span", "✓" if green else "✗", aria_hidden="true"), " ", words, class_="verdict"),
        tag("p", tag("strong", f"Numerics: {evidence['numerics']}"), f" ({NUMERICS[evidence['numerics']]})"),
        tag("p", tag("strong", f"Artifact: {evidence['artifact']}"), f" ({ARTIFACT[evidence['artifact']]})"),
        class_=f"banner {style}",
    )


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Content, str]]:
    """Name, figure, and what colours it."""
    counts = report["counts"]
    wrong = counts["FAIL"] + counts["CRASH"]
    held = sum(profile["verdict"] in ("held", "held with exclusions") for profile in report["profiles"])
    ratios = [case["ratio"] for case in report["cases"] if case["ratio"] is not None]
    yield "cases", sum(counts.values()), ""
    yield "pass", ["✓ ", counts["PASS"]], "pass" if counts["PASS"] else ""
    yield "fail or crash", ["✗ ", wrong] if wrong else 0, "fail" if wrong else ""
    yield "unsupported", counts["UNSUPPORTED"], ""
    yield "excluded or not run", counts["EXCLUDED"] + counts["NOT_RUN"], ""
    yield "profiles held", f"{held} of {len(report['profiles'])}", ""
    if ratios:
        yield "worst error / bound", ratio(max(ratios)), "fail" if max(ratios) > 1 else ""
    yield "knob pairs covered", _share(report["coverage"]["pairs"], report["coverage"]["of"]), ""
    yield "credited filter readings", sum(entry["credited"] for entry in report["filters"].values()), ""
    if report.get("power"):
        killed = sum(fault["verdict"] == "killed" for fault in report["power"])
        yield "faults killed", f"{killed} of {len(report['power'])}", ""
    yield "run time", _duration(report["run"]["seconds"]), ""


def _tile(name: str, figure: Content, style: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", figure, class_=f"v {style}" if style else False))


def _share(have: int, total: int) -> str:
    """Rounded down: 100 % is all of it."""
    return f"{100 * have // total} %" if total else "none"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def provenance(report: Mapping[str, Any]) -> Markup:
    """Where the numbers come from, and how to make them again."""
    rows: list[tuple[str, Content]] = [
        ("suite", f"version {report['suite']['version']}"),
        ("suite digest", code(report["suite"]["digest"])),
        ("report hash", code(report["hash"])),
        ("started", report["run"]["started"]),
        ("seed", str(report["run"]["seed"])),
        ("worker processes", report["run"]["jobs"]),
        *([("results of a run before", report["run"]["resumed"])] if "resumed" in report["run"] else []),
        ("backend", f"{report['backend']['name']} {report['backend']['version']}, {report['backend']['vendor']}"),
        ("interface", report["backend"]["interface"]),
        ("device", f"{report['device']['id']}: {report['device']['name']} ({report['device']['arch']})"),
        ("device memory", f"{report['device']['memory_bytes'] / 2**30:.1f} GiB"),
        ("device features", ", ".join(report["device"]["features"]) or "none named"),
        ("numbers from", report["device"]["numerics"]),
        *report["host"].items(),
    ]
    return section(
        "provenance",
        "Provenance",
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows], class_="facts"),
        tag("h3", "Run it again"),
        command(command_of(dict(report))),
        note(
            "This page is made from a JSON report, and says what that says. Whether the report is whole, comes from an "
            "unmodified suite and repeats is for you to find out: ",
            code("opsocket conformance verify report.json --rerun 50"),
            ".",
        ),
    )


def title(report: Mapping[str, Any]) -> str:
    """What a browser's tab says."""
    return (
        f"{'green' if report['verdict']['green'] else 'red'}: {report['backend']['name']} on {report['device']['name']}"
    )
