"""Subcommands that other distributions bring: a broken one is listed as broken and disturbs no other."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from opsocket.cli import main

ENTRY_POINTS = """[opsocket.commands]
fine = brought:command
broken = brought_broken:command
absent = brought_absent:command
odd = brought:NUMBER
backends = brought:command
"""
MODULE = '''
import click

NUMBER = 3

@click.command()
def command():
    """Does one thing.

    And explains it.
    """
    click.echo("done")
'''
BROKEN = '''
import click

@click.command()
def command():
    """Would do something."""

raise RuntimeError("this module can't be imported")
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    info = tmp_path / "brought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "brought.py").write_text(MODULE)
    (tmp_path / "brought_broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    main._entries.cache_clear()
    yield lambda *arguments: CliRunner().invoke(main.cli, arguments, prog_name="opsocket")
    main._entries.cache_clear()


def test_help_shows_the_first_line_of_each_without_running_it(run):
    lines = {line.split()[0]: line for line in run("--help").output.splitlines() if line.startswith("  ")}
    assert "Does one thing." in lines["fine"]
    assert "Would do something." in lines["broken"]
    assert "can't be loaded: ModuleNotFoundError" in lines["absent"]
    assert "config" in lines


def test_a_command_runs(run):
    result = run("fine")
    assert (result.exit_code, result.output) == (0, "done\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "RuntimeError: this module can't be imported"),
        ("absent", "No module named 'brought_absent'"),
        ("odd", "no click command"),
    ],
)
def test_a_broken_command_says_so(run, name, words):
    result = run(name)
    assert result.exit_code == 1
    assert words in result.stderr


def test_nobody_replaces_cores_own_commands(run):
    assert "--verbose" in run("backends", "--help").output
