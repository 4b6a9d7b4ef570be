"""`opsocket config`: what is set, where it came from, and what may be set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from opsocket.cli.common import backend_options, json_option, print_json, print_table

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig


@click.group()
def command() -> None:
    """Show, check and describe the configuration."""


@command.command()
@backend_options
@json_option
def show(config: RuntimeConfig, as_json: bool) -> None:
    """Every value and where it came from: flag, environment, file or default."""
    if as_json:
        print_json(
            [
                {"key": key, "value": value, "source": origin.source, "where": origin.where}
                for key, value, origin in config.items()
            ]
        )
        return
    print_table(("KEY", "VALUE", "FROM"), [(key, _text(value), str(origin)) for key, value, origin in config.items()])


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "-" if value == {} else str(value)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration file."""
    from opsocket.runtime import load_config

    values = [key for key, _, origin in load_config(file, environment={}).items() if origin.source == "file"]
    click.echo(f"{file}: correct; sets {', '.join(values) or 'nothing'}")


@command.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file."""
    from opsocket.runtime.schema import json_schema

    print_json(json_schema())
