"""`opsocket bench`: how fast a model runs here, beside the machine's limit."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from opsocket.cli.common import json_option, open_session, print_json, print_table, require_backend
from opsocket_engine.cli.common import engine_options, precision

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_engine.measure import Runs


def _counts(_: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise click.BadParameter("numbers of at least 1, separated by commas", param=parameter)
    return counts


@click.command()
@engine_options
@click.option("--prompt-tokens", default="128,512", show_default=True, callback=_counts, help="Lengths of the prompts.")
@click.option("--batch", "batches", default="1,8", show_default=True, callback=_counts, help="Sequences side by side.")
@click.option("--decode-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Decode steps.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each case.")
@json_option
def command(
    config: RuntimeConfig,
    model: str,
    prompt_tokens: list[int],
    batches: list[int],
    decode_tokens: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure prompt and decode speed of a model.

    Cases run in turn, each after a raw read of memory; medians, with the least and the most in brackets. "of limit" is
    the share of that read's rate at which a decode step gets through the bytes it needs: the weights as the model's
    file stores them, and the keys and values of every sequence.
    """
    selection = require_backend(config)
    from opsocket.runtime.select import HOST
    from opsocket_engine.checkpoint import open_checkpoint
    from opsocket_engine.engine import Engine
    from opsocket_engine.locate import locate
    from opsocket_engine.measure import Case, HostReader, decode_bytes, measure, room, stored_bytes
    from opsocket_engine.options import EngineOptions

    cases = [Case(prompt, batch, decode_tokens) for prompt in prompt_tokens for batch in batches]
    checkpoint = open_checkpoint(locate(model))
    options = EngineOptions.of(config.engine, max_batch=max(batches), prefix_sharing=False)
    options = replace(options, max_context=room(cases, options.max_step_tokens))
    with open_session(config, selection) as session, Engine(session, checkpoint, None, options) as engine:
        on_host = selection.device.backend == HOST
        threads = config.threads or len(os.sched_getaffinity(0))
        runs = measure(engine, cases, repeats, HostReader(threads) if on_host else None)
        weight_bytes = stored_bytes(checkpoint)
        rows = [_row(r, decode_bytes(engine, r.case, weight_bytes)) for r in runs]
        report = {
            "model": model,
            "device": str(session.device),
            "device_name": session.device.name,
            "threads": threads,
            "dtype": options.dtype,
            "activations": options.activations,
            "captured": engine.stats().captured_steps > 0,
            "kv_format": options.kv_format,
            "stored_weight_bytes": weight_bytes,
            "packed_weight_bytes": engine.stats().step_bytes,
            "repeats": repeats,
            "cases": rows,
        }
    if as_json:
        print_json(report)
    else:
        _print(report)


def _row(runs: Runs, step_bytes: float) -> dict[str, Any]:
    from opsocket_engine.measure import Spread

    row = asdict(runs.case) | {
        "prompt_tokens_per_second": asdict(Spread.of(runs.prompt_rates)),
        "decode_tokens_per_second": asdict(Spread.of(runs.decode_rates)),
        "decode_bytes_per_step": step_bytes,
        "read_bytes_per_second": None,
        "share_of_limit": None,
    }
    if any(runs.read_rates):
        pairs = zip(runs.decode_rates, runs.read_rates, strict=True)
        shares = [rate / runs.case.batch * step_bytes / read for rate, read in pairs]
        row["read_bytes_per_second"] = asdict(Spread.of(runs.read_rates))
        row["share_of_limit"] = asdict(Spread.of(shares))
    return row


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"{report['model']} on {report['device']} ({report['device_name']}), {report['threads']} threads, activations "
        f"{precision(report)}, cache {report['kv_format']}, "
        f"decode steps {'captured' if report['captured'] else 'not captured'}; weights read in a step: "
        f"{report['stored_weight_bytes'] / 1e6:.1f} MB as stored in the file, "
        f"{report['packed_weight_bytes'] / 1e6:.1f} MB as packed for the device"
    )
    columns = ["prompt", "batch", "prompt tokens/s", "decode tokens/s", "MB/step", "raw read GB/s", "of limit"]
    print_table(columns, [_cells(case) for case in report["cases"]])


def _cells(case: dict[str, Any]) -> list[str]:
    def spread(values: dict[str, float] | None, scale: float = 1.0, digits: int = 1) -> str:
        if values is None:
            return "not measured"
        median, low, high = (f"{values[name] * scale:.{digits}f}" for name in ("median", "low", "high"))
        return f"{median} ({low}-{high})"

    return [
        str(case["prompt"]),
        str(case["batch"]),
        spread(case["prompt_tokens_per_second"]),
        spread(case["decode_tokens_per_second"]),
        f"{case['decode_bytes_per_step'] / 1e6:.1f}",
        spread(case["read_bytes_per_second"], 1e-9),
        spread(case["share_of_limit"], 1.0, 3),
    ]
