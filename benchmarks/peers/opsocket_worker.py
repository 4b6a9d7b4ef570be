"""This project's engine on its CPU backend, by `opsocket` as it is installed."""

from __future__ import annotations

import time

from protocol import arguments, serve

import opsocket
from opsocket_engine.engine import Engine
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams

OPTIONS = ("dtype", "kv-format", "activations", "numerics")


def main() -> None:
    options = {name: {} for name in OPTIONS}
    args = arguments(__doc__ or "", **options)
    names = [name.replace("-", "_") for name in OPTIONS]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    session = opsocket.open("cpu", threads=args.threads)
    options = EngineOptions(
        max_batch=args.batch, max_step_tokens=2 * args.context, max_context=args.context,
        num_blocks=2 * args.context // 16, prefix_sharing=False, **given,
    )  # fmt: skip
    engine = Engine.load(session, args.model, options)

    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        params = SamplingParams(ignore_eos=True, max_tokens=decode + 1)
        tokens = {engine.add_request(prompt, params): [] for prompt in prompts}
        start = time.perf_counter()
        while not all(tokens.values()):
            step(tokens)
        between = time.perf_counter()
        if max(map(len, tokens.values())) > 1:
            raise SystemExit("the prompts did not fit one step: prompt and decode times would mix")
        while engine.has_work:
            step(tokens)
        return between - start, time.perf_counter() - between, list(tokens.values())

    def step(tokens: dict[int, list[int]]) -> None:
        for output in engine.step():
            tokens[output.request].append(output.token_id)

    stats = engine.stats()
    facts = ", ".join(f"{name} {value}" for name, value in given.items())
    serve(f"opsocket cpu{' (' + facts + ')' if facts else ''}", [f"opsocket {opsocket.__version__}"], run,
          step_bytes=stats.step_bytes, token_bytes=stats.token_bytes)  # fmt: skip


main()
