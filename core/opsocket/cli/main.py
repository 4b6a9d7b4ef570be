"""The `opsocket` command. Subcommands are found by metadata and imported only when they run.

Each is a click command named by an entry point of group `opsocket.commands`; the line that `--help` shows for it is
the first of its function's docstring, read from the source without running it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import logging
import traceback
from importlib.metadata import EntryPoint
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

import opsocket
from opsocket.cli.common import FAILED, CommandError, exit_code_of, render
from opsocket.plugins.entries import installed

COMMANDS_GROUP: Final = "opsocket.commands"
_OWN: Final = ("backends", "completion", "config", "doctor", "explain", "limits", "tune")


@functools.cache
def _entries() -> dict[str, EntryPoint]:
    """Every subcommand by name; nobody replaces one of core's own."""
    own = {name: EntryPoint(name, f"opsocket.cli.{name}:command", COMMANDS_GROUP) for name in _OWN}
    found = {entry.name: entry for entry in installed(COMMANDS_GROUP).found}
    return dict(sorted((found | own).items()))


def _summary(entry: EntryPoint) -> str:
    """The first line of the docstring of the function that an entry point names."""
    try:
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {entry.module!r}")
        source = spec.loader.get_source(entry.module)  # type: ignore[attr-defined]
        functions = [node for node in ast.parse(source or "").body if isinstance(node, ast.FunctionDef)]
        documented = next((f for f in functions if f.name == entry.attr), None)
        return ((ast.get_docstring(documented) if documented else None) or "").partition("\n")[0]
    except (Exception, SystemExit) as error:  # a broken command is listed as broken and disturbs no other
        return f"(can't be loaded: {type(error).__name__}: {error})"


class Commands(click.Group):
    """A group whose commands are loaded one at a time, and that shows typed errors as people want to read them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _entries().get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except (Exception, SystemExit) as error:
            if ctx.params.get("debug"):
                click.echo(traceback.format_exc(), err=True)
            cause = f"{type(error).__name__}: {error}"
            raise CommandError(f"command {cmd_name!r} ({entry.value}) can't be loaded: {cause}", FAILED) from error
        if not isinstance(command, click.Command):
            raise CommandError(f"command {cmd_name!r}: {entry.value} is no click command", FAILED)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        meant = difflib.get_close_matches(args[0], _entries(), 1)
        if args[0] not in _entries() and meant:
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {meant[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(entry)) for name, entry in _entries().items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in _entries() if name.startswith(incomplete)]
        return [CompletionItem(name, help=_summary(_entries()[name])) for name in names] + [
            *click.Command.shell_complete(self, ctx, incomplete)
        ]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from opsocket.operators import OpsocketError

            if not isinstance(error, OpsocketError):
                raise
            if ctx.params.get("debug"):
                click.echo(traceback.format_exc(), err=True)
                click.echo(getattr(error, "traceback", None) or "", err=True)
            raise CommandError(render(error), exit_code_of(error)) from error


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"opsocket: {record.getMessage()}", err=True)


def _show_log() -> None:
    log = logging.getLogger("opsocket")
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from opsocket.operators import INTERFACE_VERSION

        click.echo(f"opsocket {opsocket.__version__} (interface {INTERFACE_VERSION})")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 it ran and failed, or the verdict is no; 2 wrong usage, configuration or input; "
    "3 no such backend here, or it can't do what was asked.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show versions."
)
def cli(debug: bool) -> None:
    """One operator interface for LLM inference, any chip behind it, and proof that each one is right."""
    _show_log()


def main() -> None:
    """The console script."""
    cli(prog_name="opsocket")
