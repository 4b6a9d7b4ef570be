"""The report as JUnit XML, which every CI system reads: one suite per operator."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree


def junit(report: dict[str, Any]) -> str:
    """FAIL is a failure, CRASH and NOT_RUN are errors, UNSUPPORTED and EXCLUDED are skipped."""
    device, run = report["device"]["id"], report["run"]
    root = ElementTree.Element("testsuites", name=f"opsocket conformance {device}", time=str(run["seconds"]))
    for row in report["operators"]:
        counts = row["counts"]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=row["operator"],
            tests=str(row["cases"]),
            failures=str(counts["FAIL"]),
            errors=str(counts["CRASH"] + counts["NOT_RUN"]),
            skipped=str(counts["UNSUPPORTED"] + counts["EXCLUDED"]),
            timestamp=run["started"],
        )
        for case in report["cases"]:
            if case["operator"] == row["operator"]:
                _case(suite, case, device)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


_ELEMENTS = {"FAIL": "failure", "CRASH": "error", "NOT_RUN": "error", "UNSUPPORTED": "skipped", "EXCLUDED": "skipped"}


def _case(suite: ElementTree.Element, case: dict[str, Any], device: str) -> None:
    element = ElementTree.SubElement(
        suite, "testcase", classname=f"{device}.{case['operator']}", name=case["id"], time=str(case["seconds"])
    )
    kind = _ELEMENTS.get(case["verdict"])
    if kind is None:
        return
    reasons = [f"{r['field']}={r['got']!r}: wanted {r['want']}" for r in case["reasons"]]
    said = _printable("\n".join([*case["messages"], *reasons]))
    message = f"{case['verdict']}: {said.splitlines()[-1] if said else ''}"
    ElementTree.SubElement(element, kind, message=message).text = said


def _printable(text: str) -> str:
    """XML 1.0 has no way to hold most control characters."""
    return "".join(c if c in "\n\t" or ord(c) >= 32 else "?" for c in text)
