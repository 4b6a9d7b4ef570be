"""The fuzzer: it draws cases that can be asked again, finds a planted fault, and makes it small."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsocket.cli.main import cli
from opsocket.operators import ContractError
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.domains import DOMAINS, cases
from opsocket_conformance.fuzz import Fuzzer, checks_of
from opsocket_conformance.operators.attention.batches import BATCHES, Row, literal, rows_of
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of([cases(kind) for kind in DOMAINS]))
def test_every_drawn_case_is_its_id(case):
    again = parse_case(case.id, CHECKS)
    assert (again.check, again.draw) == (case.check, case.draw)
    assert case.check.features()


ROWS = st.builds(
    lambda q_len, kv_len, ahead, start: Row(q_len, kv_len, min(ahead, kv_len), 0, start),
    st.integers(0, 128), st.integers(0, 500), st.integers(0, 9), st.integers(0, 999),
)  # fmt: skip


@given(st.lists(ROWS, min_size=1, max_size=9))
def test_a_batch_of_any_rows_has_a_name(rows):
    assert rows_of(literal(rows)) == tuple(rows)


def test_the_batches_of_the_suite_have_literals_too():
    for name, rows in BATCHES.items():
        assert not rows or rows_of(literal(rows)) == rows_of(name)


@pytest.mark.parametrize(
    "batch",
    ["decod", "r", "r1", "r1:", "r1:2:3", "r129:1", "r1:20001", "r1:5:0:3", "r1:5+1:9:0:6", "r1:2:0:0:100001", "r-1:2",
     "r1:9999999", "+".join(["r1:1", *["1:1"] * 32]), "r1:19999+1:19999+1:19999"],
)  # fmt: skip
def test_a_batch_that_is_none_is_refused_before_it_is_drawn(batch):
    with pytest.raises(ContractError) as error:
        parse_case(f"attention[batch={batch}]#0", CHECKS)
    assert error.value.argument == "case.batch"


def _last_key_dropped(batch):
    """Of requests that are one key longer than a page or several."""
    lens = np.array(batch.kv_lens)
    return replace(batch, kv_lens=np.where((lens % 16 == 1) & (lens > 1), lens - 1, lens))


@pytest.fixture
def faulty(session):
    fault = Fault("attention", batch=_last_key_dropped, where=lambda request: request.spec.num_kv_heads == 5)
    return FaultySession(session, fault)


def test_a_planted_fault_is_found_and_made_small(faulty, session):
    tally = Fuzzer(faulty, (Attention,), seed=7, seconds=100.0, examples=20).run()
    assert tally.findings
    finding = tally.findings[0]
    check = finding.case.check
    assert check.hkv == 5
    assert any(row.kv_len % 16 == 1 for row in rows_of(check.batch))
    assert sum(row.kv_len for row in rows_of(check.batch)) <= 200
    assert len(finding.case.id) < len(finding.found.id)
    assert (check.hq, check.kv, check.cap, check.left, check.strided) == (5, "", None, None, False)
    assert run_case(finding.case, faulty, 3, 60.0).verdict is Verdict.FAIL
    assert run_case(finding.case, session, 3, 60.0).verdict is Verdict.PASS


def test_the_same_seed_tries_the_same_cases(session):
    def tried(seed):
        ids: list[str] = []

        class Noting(Fuzzer):
            def _try(self, case, shrinking):
                ids.append(case.id)
                return super()._try(case, shrinking)

        Noting(session, checks_of(["add", "argmax"]), seed=seed, seconds=20.0, examples=40).run()
        return ids

    assert tried(1) == tried(1) != tried(2)


def test_operators_are_asked_for_by_either_name():
    assert {kind.name for kind in checks_of(["attention"])} == {"attention", "attention_law"}
    assert [kind.name for kind in checks_of(["negative"])] == ["negative"]
    with pytest.raises(ContractError, match="cache_write"):
        checks_of(["attentions"])


def test_the_command_reports_what_it_tried(tmp_path):
    out = tmp_path / "fuzz.json"
    args = ["conformance", "fuzz", "-b", "cpu", "--operator", "silu_mul,add", "--examples", "30", "--json", str(out)]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    assert "30 examples" in done.output
    report = json.loads(out.read_text())
    assert report["examples"] == 30
    assert report["findings"] == []
    assert {v["operator"] for v in report["verdicts"]} <= {"silu_mul", "add"}
