"""What `generate` and `bench` share. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from opsocket.cli.common import backend_options

if TYPE_CHECKING:
    from opsocket.operators import Reason, Request, Session
    from opsocket.runtime import Placed, RuntimeConfig
    from opsocket_engine.checkpoint import Checkpoint
    from opsocket_engine.engine import Engine
    from opsocket_engine.options import EngineOptions
    from opsocket_engine.tokenizer import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])


def engine_options(command: F) -> F:
    """Add --model and the settings of backend and engine; the command takes `model: str`, `config: RuntimeConfig`."""

    @click.option(
        "--model",
        default="smollm2",
        show_default=True,
        help="A packaged model's name, a .gguf file, or a Hugging Face folder.",
    )
    @backend_options
    @click.option("--dtype", help="Type of the activations: f32, bf16 or f16.")
    @click.option("--activations", help="What they are multiplied as by quantized weights: none, i8_token or i8_g32.")
    @click.option("--kv-format", help="How keys and values are stored: f32, f16, bf16, f8e4m3fn, i8, i4, ...")
    @click.option("--numerics", help="What kernels may do inside: exact, or fast (what matrix units do).")
    @click.option("--capture/--no-capture", default=None, help="Record decode steps and replay them (default: yes).")
    @click.option("--replay-steps", type=click.IntRange(min=1), help="Decode steps that one replay runs (default: 8).")
    @click.option("--threads", type=click.IntRange(min=1), help="Host threads.")
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        config: RuntimeConfig,
        dtype: str | None,
        activations: str | None,
        kv_format: str | None,
        numerics: str | None,
        capture: bool | None,
        replay_steps: int | None,
        threads: int | None,
        **kwargs: Any,
    ) -> Any:
        from opsocket_engine.options import kv_format_name

        flags = {
            "engine.dtype": dtype,
            "engine.activations": activations,
            "engine.kv_format": None if kv_format is None else kv_format_name(kv_format),
            "engine.numerics": numerics,
            "engine.capture": capture,
            "engine.replay_steps": replay_steps,
            "threads": threads,
        }
        given = {key: value for key, value in flags.items() if value is not None}
        return command(*args, config=config.override("flag", given), **kwargs)

    return wrapper  # type: ignore[return-value]


def load_engine(
    session: Session, checkpoint: Checkpoint, tokenizer: Tokenizer | None, options: EngineOptions, name: str
) -> Engine:
    """An engine, whose loading is shown on stderr where that is a terminal."""
    from opsocket_engine.engine import Engine

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return Engine(session, checkpoint, tokenizer, options)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(name, total=None)

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        return Engine(session, checkpoint, tokenizer, options, progress)


def precision(report: Mapping[str, Any]) -> str:
    """The type of activations, what they are multiplied as where that is another, and what kernels may do inside."""
    codes = {"i8_token": "int8 codes, a scale per token", "i8_g32": "int8 codes, a scale per 32 columns"}
    name = report["activations"]
    multiplied = "" if name == "none" else f" (multiplied as {codes[name]})"
    return f"{report['dtype']}{multiplied}, numerics {report['numerics']}"


def placement(session: Session, requests: list[Request]) -> list[Placed]:
    """Who serves each request of a session."""
    from opsocket.runtime import place

    return list(place(session.backend, session.device, requests, session.options.pins, session.options.tuned))


def placement_lines(placed: list[Placed]) -> list[str]:
    """One line for each operator and answer: operator, provider, tier, how many requests, why not another provider.

    `opsocket explain` says the same in full.
    """
    rows: dict[tuple[str, str, str, str], int] = {}
    for p in placed:
        support = p.support
        why = "; ".join(f"{name}: {', '.join(map(_brief, reasons))}" for name, reasons in support.passed_over)
        row = (p.request.op, support.provider or "-", support.tier, why or "asked first")
        rows[row] = rows.get(row, 0) + 1
    head = f"{'operator':18} {'provider':10} {'tier':9} requests  why"
    return [head, *(f"{op:18} {who:10} {tier:9} {n:8}  {why}" for (op, who, tier, why), n in rows.items())]


def _brief(reason: Reason) -> str:
    return f"{reason.code}={reason.got}"
