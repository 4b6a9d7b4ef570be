"""`opsocket doctor`: each plugin in a process of its own, and the facts about this machine that explain the result."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING

import click

from opsocket.cli.common import FAILED, config_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from opsocket.plugins.probe import Probe
    from opsocket.runtime import RuntimeConfig

_LIBRARIES = ("numpy", "torch", "torch-npu", "openvino", "onnxruntime", "triton", "gguf", "safetensors", "tokenizers")


@click.command()
@click.option("--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds per plugin.")
@config_option
@json_option
@click.pass_context
def command(ctx: click.Context, config: RuntimeConfig, as_json: bool, timeout: float) -> None:
    """Take every plugin through all stages in a process of its own.

    Reports what hangs, crashes, is slow, writes to stdout, or says that it supports what it then can't plan. Exit code
    1 if a plugin is broken; an absent device is not a fault.
    """
    from opsocket.plugins.discovery import allowed_by_environment, discover
    from opsocket.plugins.probe import probe

    allow = config.plugins.allow
    probes = [probe(found, timeout) for found in discover(allowed_by_environment() if allow is None else allow)]
    facts = _facts()
    broken = any(fault.broken for p in probes for fault in p.status.faults)
    if as_json:
        print_json({"facts": facts, "plugins": [p.to_json() for p in probes], "broken": broken})
    else:
        _print(facts, probes)
    if broken:
        ctx.exit(FAILED)


def _facts() -> dict[str, str]:
    """What the machine and the environment are. Versions come from metadata: nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    import opsocket
    from opsocket.operators import INTERFACE_VERSION
    from opsocket.plugins.known import KNOWN_CHIPS

    facts = {
        "opsocket": f"{opsocket.__version__} (interface {INTERFACE_VERSION})",
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "processors": f"{_usable_processors()} usable",
    }
    for library in _LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            facts[library] = "not installed"
    facts |= {chip.name: chip.evidence() for chip in KNOWN_CHIPS}
    return facts | {name: text for name, text in sorted(os.environ.items()) if name.startswith("OPSOCKET_")}


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(facts: dict[str, str], probes: list[Probe]) -> None:
    from opsocket.cli.backends import COLUMNS, status_rows

    print_table(("FACT", ""), list(facts.items()))
    click.echo()
    print_table(COLUMNS, [row for p in probes for row in status_rows(p.status)])
    for p in probes:
        status = p.status
        took = "" if status.import_seconds is None else f", imported in {status.import_seconds:.2f} s"
        click.echo(f"\nplugin {status.name!r} of {status.distribution} {status.version}: {p.seconds:.1f} s{took}")
        for note in (note for backend in status.backends for note in backend.notes):
            click.echo(f"  {note}")
        for warning in p.warnings:
            click.echo(f"  warning: {warning}")
        for fault in status.faults:
            if fault.traceback:
                click.echo(f"  {fault.cause}\n    " + "\n    ".join(fault.traceback.rstrip().splitlines()))
