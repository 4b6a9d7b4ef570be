"""The report as JUnit XML, which every CI system reads: one suite per operator."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from opsocket_conformance.report.text import printable


def junit(report: dict[str, Any]) -> str:
    """FAIL is a failure, CRASH and NOT_RUN are errors, UNSUPPORTED and EXCLUDED are skipped."""
    device, run = printable(report["device"]["id"]), report["run"]
    root = ElementTree.Element("testsuites", name=f"opsocket conformance {device}", time=str(run["seconds"]))
    for row in report["operators"]:
        counts = row["counts"]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=printable(row["operator"]),
            tests=str(row["cases"]),
            failures=str(counts["FAIL"]),
            errors=str(counts["CRASH"] + counts["NOT_RUN"]),
            skipped=str(counts["UNSUPPORTED"] + counts["EXCLUDED"]),
            timestamp=printable(run["started"]),
        )
        for case in report["cases"]:
            if case["operator"] == row["operator"]:
                _case(suite, case, device)
    if report.get("ladder") is not None:
        _ladder(root, report["ladder"], device)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _ladder(root: ElementTree.Element, ladder: dict[str, Any], device: str) -> None:
    """A case for each artifact and each control; what is refused or passes wrongly is a failure."""
    for name, entries in (("artifacts", ladder["artifacts"]), ("controls", ladder["controls"])):
        suite = ElementTree.SubElement(root, "testsuite", name=name, tests=str(len(entries)))
        failures = 0
        for entry in entries:
            what = entry["variant"] if name == "artifacts" else f"{entry['name']}, {entry['rung']}"
            element = ElementTree.SubElement(
                suite, "testcase", classname=f"{device}.{name}.{printable(entry['arch'])}", name=printable(what)
            )
            wrong = "; ".join(entry["problems"]) if name == "artifacts" else "" if entry["refused"] else entry["said"]
            if wrong:
                failures += 1
                ElementTree.SubElement(element, "failure", message=printable(wrong)).text = printable(wrong)
        suite.set("failures", str(failures))


_ELEMENTS = {"FAIL": "failure", "CRASH": "error", "NOT_RUN": "error", "UNSUPPORTED": "skipped", "EXCLUDED": "skipped"}


def _case(suite: ElementTree.Element, case: dict[str, Any], device: str) -> None:
    operator, name = printable(case["operator"]), printable(case["id"])
    element = ElementTree.SubElement(
        suite, "testcase", classname=f"{device}.{operator}", name=name, time=str(case["seconds"])
    )
    kind = _ELEMENTS.get(case["verdict"])
    if kind is None:
        return
    reasons = [f"{r['field']}={r['got']!r}: wanted {r['want']}" for r in case["reasons"]]
    said = printable("\n".join([*case["messages"], *reasons]))
    message = f"{case['verdict']}: {said.splitlines()[-1] if said else ''}"
    ElementTree.SubElement(element, kind, message=message).text = said
