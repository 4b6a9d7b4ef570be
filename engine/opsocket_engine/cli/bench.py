"""`opsocket bench`: how fast a model runs here, beside the machine's limit."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opsocket.cli.common import json_option, open_session, print_json, print_table, require_backend
from opsocket_engine.cli.common import engine_options, load_engine, precision

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_engine.engine import Engine
    from opsocket_engine.measure import Runs


def _counts(_: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",") if part]
    except ValueError:
        counts = [-1]
    least = 0 if parameter.name == "contexts" else 1
    if any(count < least for count in counts):
        raise click.BadParameter(f"numbers of at least {least}, separated by commas", param=parameter)
    return counts


def _plot_file(_: click.Context, parameter: click.Parameter, text: str | None) -> Path | None:
    if text is None:
        return None
    if Path(text).suffix not in (".svg", ".png"):
        raise click.BadParameter("a file whose name ends with .svg or .png", param=parameter)
    if find_spec("matplotlib") is None:
        raise click.BadParameter("needs matplotlib: pip install 'opsocket[bench]'", param=parameter)
    return Path(text)


@click.command()
@engine_options
@click.option("--prompt-tokens", default="128,512", show_default=True, callback=_counts, help="Lengths of the prompts.")
@click.option("--contexts", default="0,1024,4096", show_default=True, callback=_counts, help="Tokens before decoding.")
@click.option("--batch", "batches", default="1,8", show_default=True, callback=_counts, help="Sequences side by side.")
@click.option("--decode-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Decode steps.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each case.")
@click.option("--plot", callback=_plot_file, help="Also draw decode speed against context and batch: a .svg or .png.")
@json_option
def command(
    config: RuntimeConfig,
    model: str,
    prompt_tokens: list[int],
    contexts: list[int],
    batches: list[int],
    decode_tokens: int,
    repeats: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure prompt and decode speed of a model.

    Cases run in turn; medians, with the least and the most in brackets. "of limit" is the share of a raw read's rate,
    taken just before, at which a decode step gets through the bytes it needs: the weights as the model's file stores
    them, and the keys and values of every sequence.
    """
    selection = require_backend(config)
    from opsocket.runtime.select import HOST
    from opsocket_engine.checkpoint import open_checkpoint
    from opsocket_engine.locate import locate
    from opsocket_engine.measure import Case, Decode, HostReader, Prompts, blocks_for, measure, stored_bytes
    from opsocket_engine.options import EngineOptions

    cases: list[Case] = [Prompts(tokens, batch) for tokens in prompt_tokens for batch in batches]
    options = EngineOptions.of(config.engine, max_batch=max(batches))
    together = options.replay_steps
    cases += [Decode(context, batch, decode_tokens, together) for context in contexts for batch in batches]
    if not cases:
        raise click.UsageError("give --prompt-tokens or --contexts at least one number")
    if plot and not contexts:
        raise click.UsageError("--plot draws decode speed: give --contexts at least one number")
    checkpoint = open_checkpoint(locate(model))
    blocks = options.num_blocks or blocks_for(cases, options.block_size)
    options = replace(options, max_context=max(case.context for case in cases), num_blocks=blocks)
    with open_session(config, selection) as session, load_engine(session, checkpoint, None, options, model) as engine:
        on_host = selection.device.backend == HOST
        threads = config.threads or len(os.sched_getaffinity(0))
        runs = measure(engine, cases, repeats, HostReader(threads) if on_host else None)
        weight_bytes = stored_bytes(checkpoint)
        report = {
            "model": model,
            "device": str(session.device),
            "device_name": session.device.name,
            "threads": threads,
            "dtype": options.dtype,
            "activations": options.activations,
            "numerics": options.numerics,
            "captured": engine.stats().captured_steps > 0,
            "kv_format": options.kv_format,
            "stored_weight_bytes": weight_bytes,
            "packed_weight_bytes": engine.stats().step_bytes,
            "repeats": repeats,
            "prompts": [_prompt_row(r) for r in runs if isinstance(r.case, Prompts)],
            "decodes": [_decode_row(r, engine, weight_bytes) for r in runs if isinstance(r.case, Decode)],
        }
    if plot:
        from opsocket_engine.cli.bench_plot import draw

        try:
            draw(report, plot)
        except OSError as error:
            raise click.FileError(str(plot), error.strerror) from error
    if as_json:
        print_json(report)
    else:
        _print(report)


def _prompt_row(runs: Runs) -> dict[str, Any]:
    from opsocket_engine.measure import Spread

    return asdict(runs.case) | {"tokens_per_second": asdict(Spread.of(runs.rates))}


def _decode_row(runs: Runs, engine: Engine, weight_bytes: int) -> dict[str, Any]:
    from opsocket_engine.measure import Decode, Spread, decode_bytes

    assert isinstance(runs.case, Decode)
    step_bytes = decode_bytes(engine, runs.case, weight_bytes)
    row = asdict(runs.case) | {
        "tokens_per_second": asdict(Spread.of(runs.rates)),
        "bytes_per_step": step_bytes,
        "read_bytes_per_second": None,
        "share_of_limit": None,
    }
    if any(runs.read_rates):
        pairs = zip(runs.rates, runs.read_rates, strict=True)
        row["read_bytes_per_second"] = asdict(Spread.of(runs.read_rates))
        row["share_of_limit"] = asdict(Spread.of([rate / runs.case.batch * step_bytes / read for rate, read in pairs]))
    return row


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"{report['model']} on {report['device']} ({report['device_name']}), {report['threads']} threads, activations "
        f"{precision(report)}, cache {report['kv_format']}, "
        f"decode steps {'captured' if report['captured'] else 'not captured'}; weights read in a step: "
        f"{report['stored_weight_bytes'] / 1e6:.1f} MB as stored in the file, "
        f"{report['packed_weight_bytes'] / 1e6:.1f} MB as packed for the device"
    )
    if report["prompts"]:
        rows = [[str(r["tokens"]), str(r["batch"]), _spread(r["tokens_per_second"])] for r in report["prompts"]]
        print_table(["prompt", "batch", "tokens/s"], rows)
    if report["decodes"]:
        columns = ["decode at", "batch", "tokens/s", "MB/step", "raw read GB/s", "of limit"]
        print_table(columns, [_decode_cells(row) for row in report["decodes"]])


def _decode_cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["start"]),
        str(row["batch"]),
        _spread(row["tokens_per_second"]),
        f"{row['bytes_per_step'] / 1e6:.1f}",
        _spread(row["read_bytes_per_second"], 1e-9),
        _spread(row["share_of_limit"], 1.0, 3),
    ]


def _spread(values: dict[str, float] | None, scale: float = 1.0, digits: int = 1) -> str:
    if values is None:
        return "not measured"
    median, low, high = (f"{values[name] * scale:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}-{high})"
