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
        max_batch=args.batch, max_context=args.context, num_blocks=2 * args.context // 16, prefix_sharing=False,
        **given,
    )  # fmt: skip
    engine = Engine.load(session, args.model, options)

    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        # Whose prompt comes first decodes while the others are computed: the time is theirs, the tokens are left over.
        ahead = sum(map(len, prompts)) // options.max_step_tokens + 1
        params = SamplingParams(ignore_eos=True, max_tokens=decode + 1 + ahead)
        tokens = {engine.add_request(prompt, params): [] for prompt in prompts}
        start = time.perf_counter()
        while not all(tokens.values()):
            step(tokens)
        between = time.perf_counter()
        if min(map(len, tokens.values())) > 1:
            raise SystemExit("the last prompt's step went on to decode: prompt and decode times would mix")
        while min(map(len, tokens.values())) < decode + 1:
            step(tokens)
        end = time.perf_counter()
        for request in tokens:
            engine.abort(request)
        return between - start, end - between, [ids[: decode + 1] for ids in tokens.values()]

    def step(tokens: dict[int, list[int]]) -> None:
        for output in engine.step():
            tokens[output.request].append(output.token_id)

    stats = engine.stats()
    facts = ", ".join(f"{name} {value}" for name, value in given.items())
    serve(f"opsocket cpu{' (' + facts + ')' if facts else ''}", [f"opsocket {opsocket.__version__}"], run,
          step_bytes=stats.step_bytes, token_bytes=stats.token_bytes)  # fmt: skip


main()
