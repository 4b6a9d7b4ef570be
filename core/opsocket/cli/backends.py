"""`opsocket backends`: what is installed, how far each came, and why no further."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from opsocket.cli.common import config_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from opsocket.plugins.known import KnownChip
    from opsocket.plugins.status import BackendStatus, Fault, PluginStatus
    from opsocket.runtime import RuntimeConfig


@click.command()
@click.option("--verbose", "-v", is_flag=True, help="Show the tracebacks of what is broken.")
@config_option
@json_option
def command(config: RuntimeConfig, as_json: bool, verbose: bool) -> None:
    """List the backends, their devices, and why one is missing.

    Each plugin goes through stages: discovered, compatible, imported, validated, available (it has a device here),
    opened. The table shows the last one reached, or the one that was not.
    """
    from opsocket.operators import INTERFACE_VERSION
    from opsocket.plugins.known import KNOWN_CHIPS
    from opsocket.plugins.load import plugins

    statuses = plugins(config.plugins.allow)
    named = {status.name for status in statuses} | {b.name for status in statuses for b in status.backends}
    missing = [chip for chip in KNOWN_CHIPS if chip.name not in named]
    if as_json:
        print_json(
            {
                "interface": INTERFACE_VERSION,
                "plugins": [status.to_json() for status in statuses],
                "not_installed": [
                    {"name": c.name, "vendor": c.vendor, "driver_present": c.is_present(), "evidence": c.evidence()}
                    for c in missing
                ],
            }
        )
        return
    print_table(COLUMNS, [row for status in statuses for row in status_rows(status)] + [_missing(c) for c in missing])
    if verbose:
        for status in statuses:
            for fault in status.faults:
                _echo_traceback(status, fault)


COLUMNS = ("BACKEND", "VENDOR", "VERSION", "STAGE", "DEVICES", "WHY NOT")


def status_rows(status: PluginStatus) -> Iterator[tuple[str, ...]]:
    """The table's rows of one plugin: its backends, or itself where it has none to show."""
    if not status.backends:
        where = f"{status.distribution} {status.version}"
        yield f"({status.name})", "-", where, stage_text(status), "-", why(status.fault)
    for backend in status.backends:
        devices = ", ".join(f"{d} {d.name}{f' ({d.numerics})' if d.emulated else ''}" for d in backend.devices) or "-"
        yield backend.name, backend.vendor, backend.version, stage_text(backend), devices, why(backend.fault)


def stage_text(status: PluginStatus | BackendStatus) -> str:
    """The stage reached, or the one that was not."""
    return status.reached if status.fault is None else f"not {status.fault.stage}"


def why(fault: Fault | None) -> str:
    """Cause and hint in one cell."""
    if fault is None:
        return ""
    return f"{fault.cause} ({fault.hint})" if fault.hint else fault.cause


def _missing(chip: KnownChip) -> tuple[str, ...]:
    cause = f"no installed plugin provides it; {chip.evidence()}"
    return chip.name, chip.vendor, "-", "not discovered", "-", cause


def _echo_traceback(status: PluginStatus, fault: Fault) -> None:
    if fault.traceback:
        click.echo(f"\n{status.distribution} {status.version}, plugin {status.name!r}:\n{fault.traceback.rstrip()}")
