"""What the subcommands of `opsocket` share: options, exit codes, errors, tables.

Light on purpose: `opsocket --help` loads it, so nothing here imports numpy or a framework before a command runs.

    @click.command()
    @backend_options                     # --backend, --config, --pin; hands over `config: RuntimeConfig`
    @json_option                         # --json; hands over `as_json: bool`
    def command(config, as_json):
        "One line of help."
        require_backend(config)          # fails within a second, before anything heavy is imported
        with open_session(config) as session: ...

Typed errors may pass through a command: the `opsocket` group shows them and picks the exit code.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from opsocket.operators import Session
    from opsocket.runtime import RuntimeConfig, Selection

F = TypeVar("F", bound=Callable[..., Any])

OK: Final = 0
"""Done."""
FAILED: Final = 1
"""It ran and failed, or its verdict is no."""
USAGE: Final = 2
"""Wrong usage, configuration or input."""
UNAVAILABLE: Final = 3
"""No such backend here, or it can't do what was asked."""


class CommandError(click.ClickException):
    """An error as the command line shows it: a message and an exit code (which click declares for the class, and reads
    from the instance)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"opsocket: {self.message}", file=file or sys.stderr)


def exit_code_of(error: BaseException) -> int:
    """The exit code of a typed error."""
    from opsocket.operators import ContractError, FormatError, PluginError, Unsupported

    if isinstance(error, PluginError | Unsupported):
        return UNAVAILABLE
    return USAGE if isinstance(error, ContractError | FormatError) else FAILED


def render(error: BaseException) -> str:
    """A typed error for people: the message, then what to do or each reason on a line of its own."""
    from opsocket.operators import PluginError, Unsupported

    if isinstance(error, PluginError) and error.hint:
        return f"{error.distribution}: not {error.stage}: {error.cause}\n  hint: {error.hint}"
    if isinstance(error, Unsupported):
        asked = f" {op}" if (op := getattr(error.request, "op", "")) else ""
        return "\n  ".join([f"{error.backend or 'backend'}: unsupported{asked}:", *map(str, error.reasons)])
    return str(error)


def fail(error: BaseException | str, exit_code: int | None = None) -> NoReturn:
    """End the command: the message on stderr, and the error's exit code (a plain message: 1)."""
    if isinstance(error, str):
        raise CommandError(error, FAILED if exit_code is None else exit_code)
    raise CommandError(render(error), exit_code_of(error) if exit_code is None else exit_code) from error


def config_option(command: F) -> F:
    """Add --config to a click command, which then takes `config: RuntimeConfig`."""

    @click.option("--config", "config_file", metavar="FILE", help="Configuration file (default: ./opsocket.yaml).")
    @functools.wraps(command)
    def wrapper(*args: Any, config_file: str | None, flags: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        from opsocket.runtime import load_config

        return command(*args, config=load_config(config_file, flags=flags), **kwargs)

    return wrapper  # type: ignore[return-value]


def backend_options(command: F) -> F:
    """Add --backend, --pin and --config to a click command, which then takes `config: RuntimeConfig`."""
    configured = config_option(command)

    @click.option("--backend", "-b", metavar="NAME", help="What to run on: cpu, cuda:1, ... (default: auto).")
    @click.option("--pin", "pins", metavar="OP=PROVIDER", multiple=True, help="Let only PROVIDER serve OP; repeatable.")
    @functools.wraps(configured)
    def wrapper(*args: Any, backend: str | None, pins: tuple[str, ...], **kwargs: Any) -> Any:
        flags = {"backend": backend, "operators": ",".join(pins) or None}
        return configured(*args, flags={key: text for key, text in flags.items() if text is not None}, **kwargs)

    return wrapper  # type: ignore[return-value]


def json_option(command: F) -> F:
    """Add --json, which hands the command `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def require_backend(config: RuntimeConfig) -> Selection:
    """The backend and device that `config` names, or the typed error that says why not; opens nothing.

    Call it first: it loads plugins but no framework, so that a missing backend is told at once.
    """
    from opsocket.runtime import select

    return select(config)


def open_session(config: RuntimeConfig, selection: Selection | None = None) -> Session:
    """A session on the device that `config` names. selection: what `require_backend` gave, so as not to ask twice."""
    from opsocket.runtime import open_session as open_selected

    return open_selected(config, selection)


def print_json(data: Any) -> None:
    """One JSON document on stdout; what JSON has no type for, as text."""
    click.echo(json.dumps(data, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: by rich on a terminal, where long cells wrap; aligned plain text elsewhere."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _print_rich(columns, rows)
        return
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
