"""Every command has help with an example that the command line understands, and no traceback at a closed pipe."""

import re
import subprocess
import sys

import pytest

from bitllm.cli import main
from bitllm.cli.examples import EXAMPLES, EXIT_STATUSES, under_help
from bitllm.cli.program import _COMMANDS


@pytest.fixture
def help_of(capsys, monkeypatch):
    """What ``--help`` of a command prints."""
    monkeypatch.setenv("COLUMNS", "300")

    def ask(*words):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    return ask


def test_every_command_has_an_example():
    assert set(EXAMPLES) == set(_COMMANDS)
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("command", _COMMANDS)
def test_the_help_ends_with_an_example_whose_options_it_explains(command, help_of):
    said = help_of(*command.split())
    explained, _, examples = said.rpartition("Example:")
    assert examples.strip().splitlines()[0] == EXAMPLES[command][0]
    for example in EXAMPLES[command]:
        assert example.startswith(f"bitllm {command} ")
        for option in re.findall(r"--[a-z-]+", example):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", explained), f"{example}: {option}"


def test_the_list_of_commands_ends_with_the_exit_statuses(help_of):
    said = help_of()
    assert EXIT_STATUSES in said
    assert "bitllm demo --out demo" in said
    assert under_help(None) in said


def test_a_closed_pipe_is_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "bitllm", "demo", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.close()
        said = run.stderr.read().decode()
        assert run.wait(60) == 141
    assert said == ""
