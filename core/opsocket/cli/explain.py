"""`opsocket explain`: who would serve a request or a model, and why not the others."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import IO, TYPE_CHECKING, Any, Final

import click

from opsocket.cli.common import UNAVAILABLE, backend_options, fail, json_option, print_json, require_backend
from opsocket.plugins.entries import installed

if TYPE_CHECKING:
    from opsocket.operators import Backend, DeviceInfo, Request
    from opsocket.runtime import Placed, RuntimeConfig

EXPLAIN_GROUP: Final = "opsocket.explain"
"""Entry points that turn something into requests; `model`: (model: str, config: RuntimeConfig) -> list[Request]."""


@click.command()
@click.argument("file", type=click.File(encoding="utf-8"), required=False)
@click.option("--request", "text", metavar="JSON", help="One request.")
@click.option("--model", metavar="MODEL", help="The requests of a model: a file, a folder, or a name.")
@click.option("--dtype", help="With --model: the type of its activations, f32, bf16 or f16.")
@click.option("--activations", help="With --model: what they are multiplied as by quantized weights.")
@click.option("--kv-format", help="With --model: how keys and values are stored.")
@click.option("--numerics", help="With --model: what kernels may do inside, exact or fast.")
@click.option("--assume", metavar="ARCH", help="Answer for an absent device of --backend, e.g. sm_90.")
@backend_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    config: RuntimeConfig,
    file: IO[str] | None,
    text: str | None,
    model: str | None,
    assume: str | None,
    as_json: bool,
    **engine: str | None,
) -> None:
    """Print which provider serves a request, and why not the others.

    FILE holds requests as JSON: one, a list, or one on each line; - is standard input. Exit code 3 if one of them is
    not served.
    """
    if (file is not None) + (text is not None) + (model is not None) != 1:
        raise click.UsageError("give one of FILE, --request or --model")
    given = {f"engine.{name}": value for name, value in engine.items() if value is not None}
    if given and model is None:
        option = next(iter(given)).removeprefix("engine.").replace("_", "-")
        raise click.UsageError(f"--{option} says how a model is run: it goes with --model")
    config = config.override("flag", given)
    backend, device = _device(config, assume)
    if model is not None:
        requests = model_requests(model, config)
    else:
        requests = _parse(text if text is not None else file.read() if file is not None else "")
    from opsocket.runtime import place, tuning

    tuned = tuning.load(device) if config.tuned else {}
    placed = place(backend, device, requests, config.pins_for(backend.info.name), tuned)
    if as_json:
        print_json({"device": str(device), "assumed": assume is not None, "requests": [p.to_json() for p in placed]})
    else:
        click.echo(f"{device} ({device.name})")
        for p in placed:
            _print(p)
    if not all(p.support for p in placed):
        ctx.exit(UNAVAILABLE)


def _device(config: RuntimeConfig, assume: str | None) -> tuple[Backend, DeviceInfo]:
    if assume is None:
        selection = require_backend(config)
        return selection.backend, selection.device
    from opsocket.operators import DeviceInfo
    from opsocket.runtime.select import validated_backend

    backend = validated_backend(config)
    return backend, DeviceInfo(backend.info.name, 0, f"assumed {assume}", assume, 0)


def _parse(text: str) -> list[Request]:
    from opsocket.operators import Request

    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return [Request.loads(line) for line in text.splitlines() if line.strip()]
    return [Request.from_json(item) for item in (whole if isinstance(whole, list) else [whole])]


def model_requests(model: str, config: RuntimeConfig) -> list[Request]:
    hooks: dict[str, EntryPoint] = {entry.name: entry for entry in installed(EXPLAIN_GROUP).found}
    if "model" not in hooks:
        fail("nothing that is installed can read models: install opsocket with the extra 'engine'", UNAVAILABLE)
    requests: Any = hooks["model"].load()(model, config)
    return list(requests)


def _print(placed: Placed) -> None:
    support = placed.support
    served = f"{support.tier} by {support.provider} ({placed.kernel}), capture: {support.capture}"
    answer = served if support else "not served"
    click.echo(f"{placed.request.op}: {answer}")
    click.echo(f"  request: {placed.request.dumps()}")
    if not support.passed_over:
        for reason in support.reasons:
            click.echo(f"  {reason}")
    for provider, reasons in support.passed_over:
        if support and all(reason.field == "op" for reason in reasons):
            continue  # that another library has no such operator is no news where one has it
        click.echo(f"  {provider}: " + "; ".join(map(str, reasons)))
