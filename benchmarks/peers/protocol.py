"""What a system under measurement speaks with the driver: one line of JSON each way. Needs the standard library only.

A worker is a process in the system's own environment: `python peers/SYSTEM.py --threads N MODEL [OPTION ...]`. It loads
the model, says `{"ready": ...}` with its name and versions, and answers each job `{"prompts": [[id, ...], ...],
"decode": n}` with `{"prompt_seconds": s, "decode_seconds": s, "tokens": [[id, ...], ...]}`: greedy, end tokens ignored,
n + 1 tokens for each prompt, of which the first belongs to the prompt's time. decode_seconds are of n steps in which
every sequence decodes. Every prompt is computed anew: no cache of an earlier job may serve a later one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

Run = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]


def arguments(description: str, **options: Any) -> argparse.Namespace:
    """The command line of a worker. options: name -> what add_argument takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=8)
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def serve(name: str, versions: Sequence[str], run: Run) -> None:
    """Answer jobs until the driver closes its end. What libraries print on stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps({"ready": name, "versions": list(versions)}) + "\n")
    for line in sys.stdin:
        job = json.loads(line)
        prompt_seconds, decode_seconds, tokens = run(job["prompts"], job["decode"])
        answer = {"prompt_seconds": prompt_seconds, "decode_seconds": decode_seconds, "tokens": tokens}
        answers.write(json.dumps(answer) + "\n")
