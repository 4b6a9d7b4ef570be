"""A run that ended early goes on where it was: from results of the same run, and of no other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from opsocket.operators import ContractError, FormatError, OpsocketError
from opsocket_conformance.evidence import sources_digest
from opsocket_conformance.journal import Journal
from opsocket_conformance.ladder.command import command
from opsocket_conformance.report.reading import load
from opsocket_conformance.verdicts import Filtered, Result, Verdict
from opsocket_conformance.verify import wholeness

OF = {"suite": "a", "seed": 0}
PASS = Result(
    "add[t=1]#0", "add", Verdict.PASS, "triton", "native", 0.5, 7, {"left": Filtered(0.0, 0.01)}, launched={"": ("x",)}
)
CASES = ["add[t=7,dtype=bf16,width=536]#0", "add[t=1,dtype=bf16,width=536]#0"]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "results.jsonl"


def write(path: Path, *results: Result, part: str = "sm_90") -> None:
    journal = Journal(path, OF)
    for result in results:
        journal.part(part).keep(result)
    journal.close()


def test_what_was_kept_is_known_again_as_it_was_in_its_part_alone(path) -> None:
    write(path, PASS)
    journal = Journal(path, OF)
    assert journal.part("sm_90").known(PASS.case) == PASS
    assert journal.part("sm_80").known(PASS.case) is None
    assert journal.part("sm_90").known("add[t=2]#0") is None
    assert journal.resumed == 1


@pytest.mark.parametrize("verdict", [Verdict.CRASH, Verdict.NOT_RUN, Verdict.EXCLUDED])
def test_what_may_come_out_otherwise_is_asked_again(path, verdict) -> None:
    write(path, Result("add[t=1]#0", "add", verdict))
    assert Journal(path, OF).part("sm_90").known("add[t=1]#0") is None


def test_every_line_is_there_before_the_run_ends(path) -> None:
    journal = Journal(path, OF)
    journal.part("sm_90").keep(PASS)
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_was_written_by_half_is_dropped_and_written_anew(path) -> None:
    write(path, PASS)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 40):
        path.write_bytes(whole[:cut])
        assert Journal(path, OF).part("sm_90").known(PASS.case) is None
        write(path, PASS)
        assert path.read_bytes() == whole


def test_results_of_something_else_are_refused_by_name_and_left_alone(path) -> None:
    write(path, PASS)
    before = path.read_bytes()
    with pytest.raises(ContractError, match="another seed, suite"):
        Journal(path, {"suite": "b", "seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"no journal", "line 1"),
        (b"[]\n", "line 1"),
        (b'{"of": 3}\n', "line 1"),
        (b'{"cases": []}\n', "line 1"),
        (b"\xff\n", "file"),
        (b'{"of": {"suite": "a", "seed": 0}}\n{"part": "sm_90"}\n', "line 2"),
        (b'{"of": {"suite": "a", "seed": 0}}\n{"part": "sm_90", "result": {"verdict": "GREEN"}}\n', "line 2"),
        (b'{"of": {"suite": "a", "seed": 0}}\n7\n', "line 2"),
        (b'{"of": {"suite": "a", "seed": 0}}\n' + b"[" * 100_000 + b"\n", "line 2"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(path, content, where) -> None:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        Journal(path, OF)
    assert caught.value.where == where
    assert path.read_bytes() == content


def test_a_place_that_can_not_be_written_is_an_error_before_the_run(tmp_path) -> None:
    with pytest.raises(OpsocketError, match="No such file"):
        Journal(tmp_path / "nowhere" / "results.jsonl", OF)


def test_what_computes_results_is_known_by_its_files(tmp_path, monkeypatch) -> None:
    """Packages, modules of one file, and classes that lie in no file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = {sources_digest(Journal), sources_digest(type("InNoFile", (), {"__module__": "nowhere"}))}
    assert len(seen) == 1
    for file in ("opsocket_of_one_file.py", "opsocket_folder/__init__.py", "opsocket_folder/kernels/fast.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x = 1\n")
        importlib.invalidate_caches()
        seen.add(sources_digest(Journal))
        (tmp_path / file).write_text("x = 2\n")
        seen.add(sources_digest(Journal))
    assert len(seen) == 7
    (tmp_path / "opsocket_folder" / "kernels" / "notes.txt").write_text("of no use")
    assert sources_digest(Journal) in seen


def test_verify_goes_on_from_a_run_that_ended_early(path, tmp_path) -> None:
    def verify(report: Path, *cases: str, seed: str = "0"):
        options = [word for case in cases for word in ("--case", case)]
        arguments = ["--backend", "rocm", "--arch", "gfx942", "--variants", "1", "--seed", seed, *options]
        arguments += ["--resume", str(path), "--json", str(report)]
        return CliRunner().invoke(command, arguments, catch_exceptions=False)

    first, second = tmp_path / "first.json", tmp_path / "second.json"
    verify(first, CASES[0])
    assert "resumed" not in load(first)["run"]
    ran = verify(second, *CASES)
    assert "1 of the results are of a run before" in ran.output
    report = load(second)
    assert wholeness(report) == []
    assert report["run"]["resumed"] == 1
    assert report["counts"]["PASS"] == 2
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["result"]["case"] for line in kept[1:]] == CASES
    # What was launched is known from the journal: it is compiled as if the case had run.
    assert report["ladder"]["launches"][0]["owners"] == ["add/triton"]
    with pytest.raises(ContractError, match="of another seed"):
        verify(tmp_path / "third.json", CASES[0], seed="1")
