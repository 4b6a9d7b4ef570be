"""`opsocket limits`: what this machine can do at most, as the backend measures it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from opsocket.cli.common import backend_options, json_option, open_session, print_json, print_table, require_backend

if TYPE_CHECKING:
    from opsocket.operators import Limit
    from opsocket.runtime import RuntimeConfig


@click.command()
@backend_options
@json_option
def command(config: RuntimeConfig, as_json: bool) -> None:
    """Measure what a device can do at most.

    How fast it reads memory, and how fast it computes: what every speed is to be judged against. Takes some seconds on
    a quiet machine; whatever else runs there lowers what is measured.
    """
    selection = require_backend(config)
    with open_session(config, selection) as session:
        limits, device = session.limits(), session.device
    if as_json:
        print_json({"device": str(device), "device_name": device.name, "limits": [asdict(limit) for limit in limits]})
    elif limits:
        click.echo(f"{device}: {device.name}")
        print_table(["what", "threads", "per second"], [_row(limit) for limit in limits])
    else:
        click.echo(f"{device}: this backend has no way to tell")


def _row(limit: Limit) -> list[str]:
    what = "read from memory" if limit.name == "read" else f"{limit.name} products and sums"
    unit = "GB" if limit.unit == "bytes" else "G operations"
    return [what, str(limit.threads or "all"), f"{limit.per_second / 1e9:.1f} {unit}"]
