"""OpenVINO GenAI, from the same GGUF file: its pipeline for one sequence, its continuous batching for several."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import arguments, serve


def main() -> None:
    args = arguments(__doc__ or "")
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching, scheduler.max_num_batched_tokens = 2, False, 4096
    pipeline = genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": args.threads})
    numbers = iter(range(1 << 40))

    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        config = genai.GenerationConfig(max_new_tokens=decode + 1, ignore_eos=True, do_sample=False)
        config.stop_token_ids = set()
        handles = [
            pipeline.add_request(next(numbers), ov.Tensor(np.array([prompt], np.int64)), config) for prompt in prompts
        ]
        tokens: list[list[int]] = [[] for _ in prompts]
        start = between = time.perf_counter()
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for mine, handle in zip(tokens, handles, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        mine += output.generated_ids
            if between == start and all(tokens):
                between = time.perf_counter()
        return between - start, time.perf_counter() - between, [mine[: decode + 1] for mine in tokens]

    serve("OpenVINO GenAI", [f"openvino-genai {genai.__version__}"], run)


main()
