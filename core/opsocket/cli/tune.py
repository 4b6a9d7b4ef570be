"""`opsocket tune`: which provider is fastest for a model's products, measured on this machine and kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from opsocket.cli.common import backend_options, json_option, open_session, print_json, print_table, require_backend
from opsocket.cli.explain import model_requests

if TYPE_CHECKING:
    from opsocket.operators import Request, Session
    from opsocket.runtime import RuntimeConfig

ROWS = (1, 8, 128)
"""One sequence that decodes, eight, and a piece of a prompt. A weight is packed for one provider, which serves all."""


@click.command()
@click.option("--model", metavar="MODEL", required=True, help="The requests of a model: a file, a folder, or a name.")
@click.option("--dry-run", is_flag=True, help="Measure, and keep nothing.")
@backend_options
@json_option
def command(config: RuntimeConfig, model: str, dry_run: bool, as_json: bool) -> None:
    """Measure which provider is fastest for a model's products.

    Each product with weights is timed with every provider that serves it, for 1, 8 and 128 rows, in turn; the provider
    with the least product of the three times is asked first from then on, on this machine.
    """
    selection = require_backend(config)
    requests = [request for request in model_requests(model, config) if request.op == "matmul"]
    from opsocket.runtime import tuning

    rows, choices = [], {}
    untuned = config.override("argument", {"tuned": False})
    for number, request in enumerate(requests):
        click.echo(f"{number + 1}/{len(requests)}", err=True)
        times = _times(untuned, selection, request, keep=not dry_run)
        scores = {name: _product(list(seconds.values())) for name, seconds in times.items()}
        choices[request.work] = min(scores, key=scores.__getitem__)
        rows.append({"request": request.to_json(), "seconds": times, "choice": choices[request.work]})
    file = None if dry_run else tuning.save(selection.device, choices)
    if as_json:
        print_json({"device": str(selection.device), "kept": file and str(file), "requests": rows})
        return
    print_table(["format", "n", "k", "provider", *(f"us for {m}" for m in ROWS), ""], _cells(rows))
    click.echo("kept nothing" if file is None else f"kept in {file}")


def _times(config: RuntimeConfig, selection: Any, request: Request, *, keep: bool) -> dict[str, dict[int, float]]:
    """Provider -> rows -> median seconds of one call, by kernels that have tuned themselves, for good with `keep`."""
    import numpy as np

    from opsocket.operators import Unsupported
    from opsocket.quantization import get_format, quantize, without_activation

    spec: Any = request.spec
    generator = np.random.default_rng(0)
    fmt = get_format(without_activation(spec.weight_format))
    weight = generator.standard_normal((spec.n, spec.k)).astype(np.float32)
    tensors = quantize(fmt, weight)
    calls = {}
    for provider in selection.backend.providers():
        pinned = config.override("argument", {"operators": {"matmul": provider.name}})
        session = open_session(pinned, selection)
        try:
            calls[provider.name] = _calls(session, request, tensors, keep)
        except Unsupported:
            session.close()
    samples: dict[str, dict[int, list[float]]] = {name: {m: [] for m in ROWS} for name in calls}
    for _ in range(7):
        for name, by_rows in calls.items():
            for m, call in by_rows.items():
                start = time.perf_counter()
                call()
                samples[name][m].append(time.perf_counter() - start)
    return {name: {m: sorted(values)[3] for m, values in by.items()} for name, by in samples.items()}


def _calls(session: Session, request: Request, tensors: Any, keep: bool) -> dict[int, Any]:
    import numpy as np

    from opsocket.operators import Request

    spec: Any = request.spec
    plan: Any = session.plan(Request(spec))
    packed = session.prepare_weight(Request(spec), tensors)
    plan.tune(packed, keep=keep)
    bias = session.upload(np.zeros(spec.n, np.float32)) if spec.bias else None
    calls = {}
    for m in ROWS:
        values = np.random.default_rng(m).standard_normal((m, spec.k)).astype(np.float32)
        x, y = session.upload(values, spec.x_dtype), session.empty((m, spec.n), spec.out_dtype)
        calls[m] = lambda x=x, y=y: plan.run(x, packed, bias, out=y)
        calls[m]()
    return calls


def _product(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    cells = []
    for row in rows:
        spec = row["request"]["spec"]
        for name, seconds in row["seconds"].items():
            mark = "chosen" if name == row["choice"] else ""
            times = (f"{seconds[m] * 1e6:.0f}" for m in ROWS)
            cells.append([spec["weight_format"], str(spec["n"]), str(spec["k"]), name, *times, mark])
    return cells
