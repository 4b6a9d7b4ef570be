"""What the benchmarks promise to the systems that they measure."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import install
import protocol
import pytest
import whole_model
from worker import System, Worker, held

import operators

PEERS = Path(protocol.__file__).parent


@pytest.mark.parametrize("case", whole_model.CASES, ids=lambda case: case.label)
def test_a_system_has_room_for_every_token_of_a_case(case):
    given = whole_model.room([whole_model.CASES[0], case])
    assert int(given[given.index("--context") + 1]) >= case.batch * (case.prompt + case.decode + 1)
    assert int(given[given.index("--batch") + 1]) >= case.batch


def test_what_a_library_prints_before_it_is_ready_does_not_mix_with_answers(tmp_path):
    worker = tmp_path / "chatty.py"
    worker.write_text(
        "import os\n"
        "from protocol import arguments, serve\n"
        "arguments('chatty', model=False)\n"
        "os.write(1, b'loading ...\\n')\n"
        "serve('chatty', ['1.0'], lambda prompts, decode: (1.0, 2.0, prompts))\n"
    )
    result = subprocess.run(
        [sys.executable, str(worker)], input='{"prompts": [[1]], "decode": 1}\n', capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(protocol.__file__).parent)}, timeout=60,
    )  # fmt: skip
    ready, answer = map(json.loads, result.stdout.splitlines())
    assert ready == {"ready": "chatty", "versions": ["1.0"]}
    assert answer == {"prompt_seconds": 1.0, "decode_seconds": 2.0, "tokens": [[1]]}
    assert "loading ..." in result.stderr


@pytest.mark.parametrize(
    ("requirement", "left_out"),
    [
        ('torch==2.13.0+cpu; platform_machine == "x86_64"', True),
        ("torchvision", True),
        ('pytest; extra == "test"', True),
        ("torchmetrics", False),
        ("numpy", False),
    ],
)
def test_only_builds_of_torch_and_extras_are_left_out(requirement, left_out):
    assert bool(install.LEFT_OUT.match(requirement)) == left_out


def test_a_curve_is_chosen_by_its_name_and_covers_its_axis():
    contexts = cases.chosen(cases.CPU, ["contexts"])
    assert {case.facts["context"] for case in contexts} >= {1024, 4096, 16384}
    assert {case.kind for case in contexts} == {"decode"}
    joined = cases.chosen(cases.CPU, ["contexts+i4 cache+all bf16", "no such"])
    assert {case.facts["context"] for case in joined} == {256, 1024, 4096, 16384}
    assert {(case.facts["cache"], case.facts["dtype"]) for case in joined} == {("i4", "bf16")}
    batches = cases.chosen(cases.CPU, ["batches"])
    assert {case.facts["m"] for case in batches if case.kind == "matmul"} == {1, 2, 4, 8, 16}


def test_no_case_is_measured_twice():
    for asked in (cases.CPU, cases.GPU):
        labels = [(case.kind, case.label) for case in asked]
        assert len(labels) == len(set(labels))


def ask(script: str, *jobs: dict, backend: str = "cuda", **environment: str) -> list[dict]:
    """A worker's answers, after its first line."""
    result = subprocess.run(
        [sys.executable, str(PEERS / script), "--threads", "1", "--backend", backend],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True, text=True, env=os.environ | environment, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()][1:]


def test_a_gpu_is_asked_what_its_kernels_serve():
    """On an interpreted device: what is timed there says nothing, but each kind of work of the list is prepared and
    run, at a size that an interpreter can bear."""
    small = [
        cases.matmul("bf16", 16, 0, False, 64, 128, 4, dtype="bf16", limit="bf16"),
        cases.matmul("i4_g128", 4, 128, False, 64, 128, 4, dtype="bf16", limit="bf16"),
        cases.matmul("i4_g128_a8", 4, 128, False, 64, 128, 4, dtype="bf16"),
        cases.attention("i8", 32, 1, heads=(2, 1, 64), fast=True),
        cases.attention("bf16", 16, 1, q_len=16, heads=(2, 1, 64), fast=True),
    ]
    jobs = [job for case in small for job in ({"case": case.facts}, {"calls": 2})]
    answers = ask("operators_opsocket.py", *jobs, OPSOCKET_INTERPRET="sm_90", OPSOCKET_BENCH_ROTATED_BYTES="1")
    for prepared, timed in zip(answers[::2], answers[1::2], strict=True):
        assert prepared["skip"] is None
        assert prepared["bytes"] > 0
        assert len(timed["seconds"]) == 1, "calls that are enqueued are timed together"


@pytest.mark.parametrize(
    ("script", "formats"), [("operators_opsocket.py", ("q4_0", "q4_0_a8", "bf16")), ("operators_torch.py", ("bf16",))]
)
def test_a_cpu_is_asked_for_products_of_one_weight_and_of_experts(script: str, formats: tuple[str, ...]):
    small = {"n": 64, "k": 64, "experts": 6, "top": 2, "dtype": "bf16"}
    jobs = []
    for fmt in formats:
        bits, group = (16, 0) if fmt == "bf16" else (4, 32)
        one = cases.matmul(fmt, bits, group, False, 64, 64, 3, dtype="bf16")
        several = [cases.experts(fmt, bits, group, False, m, dtype="bf16") for m in (1, 5)]
        for facts in (one.facts, *(case.facts | small for case in several)):
            jobs += [{"case": facts}, {"calls": 3}]
    answers = ask(script, *jobs, backend="cpu", OPSOCKET_BENCH_ROTATED_BYTES="1")
    for prepared, timed in zip(answers[::2], answers[1::2], strict=True):
        assert prepared["skip"] is None
        assert prepared["bytes"] > 0
        assert len(timed["seconds"]) == 3


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_peer_that_ends_is_left_out_and_the_others_go_on(answers, tmp_path, capsys, monkeypatch):
    script = tmp_path / "mortal.py"
    script.write_text(
        "import json\n"
        "print(json.dumps({'ready': 'mortal', 'versions': []}), flush=True)\n"
        "for answer in [{'bytes': 1, 'skip': None}, {'seconds': [1.0]}][:COUNT]:\n"
        "    input(), print(json.dumps(answer), flush=True)\n".replace("COUNT", str(answers))
    )
    monkeypatch.setenv("OPSOCKET_BENCH_ROTATED_BYTES", "1")

    class Limits:
        def deciding(self, case):
            return case

        def per_second(self, kind):
            return 1e9

    ours = Worker(operators.OURS, System("operators_opsocket.py", None), 1, ("--backend", "cpu"))
    workers = [Worker("mortal", System(str(script), None), 1), ours]
    case = cases.matmul("q4_0_a8", 4, 32, False, 64, 64, 3)
    (row,) = operators.measure(case, workers, Limits(), rounds=2, seconds=0.001)
    assert (row.system, len(row.seconds)) == (operators.OURS, 2)
    assert workers == [ours]
    assert "mortal ended with" in capsys.readouterr().err
    ours.close()


@pytest.mark.parametrize("m", [1, 7])
def test_tokens_meet_distinct_experts_and_one_token_meets_all_in_turn(m: int):
    case = cases.experts("q4_0", 4, 32, False, m).facts
    turns, layers, touched = protocol.routes(case, case["n"] * case["k"] * 9 // 16)
    assert (turns, layers, touched) == protocol.routes(case, case["n"] * case["k"] * 9 // 16)
    assert all(len(turn) == m and all(len(set(token)) == case["top"] for token in turn) for turn in turns)
    assert touched == sum(len({expert for token in turn for expert in token}) for turn in turns) / len(turns)
    if m == 1:
        for layer in range(layers):
            met = [expert for turn in turns[layer::layers] for expert in turn[0]]
            assert sorted(met) == list(range(case["experts"]))


def test_no_speed_is_told_of_an_interpreted_device():
    command = [sys.executable, str(PEERS.parent / "operators.py"), "--backend", "cuda"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OPSOCKET_INTERPRET": "sm_90"}, timeout=120
    )
    assert result.returncode == 1
    assert "no speed can be measured on it (numerics: interpreted)" in result.stderr


def free_for(lock: Path, kind: int) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_samples_have_the_machine_alone_and_loading_shares_it(tmp_path):
    lock = tmp_path / "quiet"
    with held(lock, fcntl.LOCK_EX):
        assert not free_for(lock, fcntl.LOCK_SH)
    with held(lock, fcntl.LOCK_SH):
        assert free_for(lock, fcntl.LOCK_SH)
        assert not free_for(lock, fcntl.LOCK_EX)
    assert free_for(lock, fcntl.LOCK_EX)
