"""A step is made of operators and nothing else, on the providers that were named beforehand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import opsocket_engine
from opsocket.operators import Graph, Plan, Session
from opsocket.runtime import Recorder, load_config, place
from opsocket_engine.config import ExpertsConfig
from opsocket_engine.engine import Engine
from opsocket_engine.explain import model_requests
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams

EDGES = ("upload", "download", "write", "view", "split", "empty")
"""The session's methods by which arrays come, go, and change their shape."""

PROMPTS = [[5, 6, 7], list(range(40)), [*range(40, 80)], [*range(40), 9]]
ENGINE = EngineOptions(num_blocks=27, block_size=4, max_batch=4, max_step_tokens=24)


class Watch(TorchDispatchMode):
    """Collects tensor operations that happen while neither a plan nor one of the session's edges is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.outside: list[str] = []
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.depth:
            self.inside += 1
        else:
            self.outside.append(str(func))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def allowed(self, _plan=None):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def wrap(self, owner, name: str, monkeypatch) -> None:
        original = getattr(owner, name)

        def method(*args, **kwargs):
            with self.allowed():
                return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, method)


@pytest.fixture
def watch(session: Session, monkeypatch) -> Watch:
    watch = Watch()
    for name in EDGES:
        watch.wrap(session, name, monkeypatch)
    watch.wrap(Plan, "update", monkeypatch)
    watch.wrap(Graph, "replay", monkeypatch)  # kernels, and copies of what they returned to where they did at first
    monkeypatch.setattr(session, "observer", watch.allowed)
    return watch


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=12, ignore_eos=True),
        SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.8, top_p=0.9, frequency_penalty=0.5, n=2),
    ],
    ids=["greedy", "sampled, in two samples"],
)
@pytest.mark.parametrize("feed_forward", [{"mlp_bias": True}, {"experts": ExpertsConfig(6, 2, True)}])
def test_no_tensor_operation_outside_a_plan(session, tiny, watch, params, feed_forward):
    checkpoint = tiny(qkv_bias=True, o_bias=True, qk_norm=True, **feed_forward)
    with Engine(session, checkpoint, None, ENGINE) as engine:
        for prompt in PROMPTS:
            engine.add_request(prompt, params)
        while engine.has_work:
            with watch:
                engine.step()
        assert engine.stats().preemptions > 0, "every path of a step"
    assert watch.inside > 100
    assert watch.outside == []


def test_the_watch_sees_what_it_should(session, tiny, watch):
    with Engine(session, tiny(), None, ENGINE) as engine, watch:
        forward = engine._decoder.forward
        engine._decoder.forward = lambda batch: forward(batch) + 0
        engine.generate([[1, 2]], SamplingParams(max_tokens=1))
    assert watch.outside == ["aten.add.Tensor"]


def test_plans_are_made_once_for_each_distinct_request(session, tiny):
    with Engine(session, tiny(num_layers=5), None, ENGINE) as deep, Engine(session, tiny(), None, ENGINE) as shallow:
        assert len(deep.requests.layers) == 5
        assert deep.requests.distinct() == shallow.requests.distinct() == list(deep._decoder.plans)


@pytest.mark.parametrize("experts", [None, ExpertsConfig(6, 2, False)])
def test_every_operator_ran_where_explain_said(session, tiny, experts):
    with Engine(session, tiny(qk_norm=True, experts=experts), None, ENGINE) as engine:
        placed = {p.request: p for p in place(session.backend, session.device, engine.requests.distinct())}
        with Recorder(session) as recorder:
            engine.generate(PROMPTS, SamplingParams(max_tokens=12, ignore_eos=True, n=2))
            engine.generate(PROMPTS, SamplingParams(max_tokens=2, ignore_eos=True, temperature=1.0))
    ran = recorder.ran()
    assert {row.request for row in ran} == set(placed)
    for row in ran:
        assert (row.provider, row.kernel) == (placed[row.request].support.provider, placed[row.request].kernel)
        assert row.calls > 0


def test_explain_makes_the_requests_that_the_engine_makes(session, tmp_path, save_transformers):
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    save_transformers(config, tmp_path)
    settings = {"engine.num_blocks": 9, "engine.dtype": "bf16", "engine.kv_format": "i8/token_head"}
    runtime = load_config(environment={}, arguments=settings | {"engine.max_batch": 3, "engine.max_tokens": 40})
    explained = model_requests(str(tmp_path), runtime)
    from opsocket_engine.checkpoint import open_checkpoint
    from opsocket_engine.locate import locate

    with Engine(session, open_checkpoint(locate(str(tmp_path))), None, EngineOptions.of(runtime.engine)) as engine:
        assert engine.requests.distinct() == explained


def test_no_module_of_the_engine_imports_torch():
    root = Path(opsocket_engine.__file__).parent
    modules = sorted(root.rglob("*.py"))
    assert len(modules) > 10
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "torch" for name in names), path


def test_the_engine_runs_without_importing_torch():
    modules = "opsocket_engine.engine, opsocket_engine.measure, opsocket_engine.explain, opsocket_engine.tokenizer"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_the_last_layer_computes_what_goes_on_and_no_more(session, tiny):
    """A prompt in three steps, of which only the last one's last token is wanted: the last layer writes its keys and
    values each time, and attends once."""
    options = replace(ENGINE, num_blocks=40, max_step_tokens=8, capture=False)
    with Engine(session, tiny(num_layers=3), None, options) as engine, Recorder(session) as recorder:
        engine.generate([list(range(24))], SamplingParams(max_tokens=1))
        calls = Counter()
        for row in recorder.ran():
            calls[row.request.op] += row.calls
    assert calls["cache_write"] == 3 * 3
    assert calls["attention"] == 3 * 3 - 2
    assert calls["silu_mul"] == 3 * 3 - 2
    assert calls["take_rows"] == 2
