"""What the suite finds on several devices, beside each other, as a page that is measured fault by fault: a page's own
cells are read back, so that one fault asked anew does not cost all the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.power.fault import Fault

NOT_ASKED: Final = "not asked"
Cells = Mapping[str, Mapping[str, str]]
"""By the name of a fault, then of a device: what was found."""


def cell(outcome: Mapping[str, Any]) -> str:
    """One outcome, as a self-test's JSON has it: how many of how many cases found the fault, and the first of them."""
    kills = outcome["kills"]
    if outcome["verdict"] == "not run":
        return NOT_ASKED
    found = f"{len(kills)} of {outcome['ran']}"
    told = found if outcome["verdict"] == "killed" else f"**{outcome['verdict']}**, {found}"
    if outcome["verdict"] == "killed" and not kills:
        return f"red by what it lacks: none of {outcome['ran']} passed"
    return f"{told}: `{kills[0]}`" if kills else told


def read_cells(page: str) -> dict[str, dict[str, str]]:
    """The cells of a page that `beside` wrote, by fault and device."""
    cells: dict[str, dict[str, str]] = {}
    devices: Sequence[str] = ()
    for line in page.splitlines():
        if not line.startswith("| "):
            continue
        first, *others = (part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", line)[1:-1])
        if first == "fault":
            devices = others[1:]
        elif devices and len(others) == len(devices) + 1 and set(first) != {"-"}:
            cells[first] = dict(zip(devices, others[1:], strict=True))
    return cells


def beside(faults: Sequence[Fault], cells: Cells, devices: Sequence[str]) -> str:
    """Counts by category; then every fault with what each device showed of it, "not asked" where it was not."""

    def of(fault: Fault, device: str) -> str:
        return cells.get(fault.name, {}).get(device, NOT_ASKED)

    by_category: dict[str, list[Fault]] = {}
    for fault in faults:
        by_category.setdefault(fault.category, []).append(fault)
    lines = [_row("category", "faults", *(f"{device}: killed, of those asked" for device in devices))]
    lines.append("| --- | ---: |" + " ---: |" * len(devices))
    for category, mine in (*by_category.items(), ("all", list(faults))):
        lines.append(_row(category, len(mine), *(_counted(of(fault, device) for fault in mine) for device in devices)))
    for category, mine in by_category.items():
        lines += ["", f"## {category.capitalize()}", "", _row("fault", "own kernel", *devices)]
        lines.append("| --- |" + " --- |" * (1 + len(devices)))
        lines += [
            _row(fault.name, "yes" if fault.kernel is not None else "", *(of(fault, device) for device in devices))
            for fault in mine
        ]
    return "\n".join(lines)


def _counted(cells: Iterable[str]) -> str:
    asked = [cell for cell in cells if cell != NOT_ASKED]
    return f"{sum(not cell.startswith('**') for cell in asked)} of {len(asked)}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
