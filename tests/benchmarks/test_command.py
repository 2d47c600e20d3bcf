"""Entry point of the benchmarks."""

import sys

import pytest

from benchmarks import command
from swin_lightning.errors import UserError


def fail(args):
    raise UserError(f"wrong: {args}")


def test_user_error_is_printed_without_traceback(monkeypatch, capsys):
    monkeypatch.setattr(command.allocator, "settings", lambda environment: {})
    monkeypatch.setattr(sys, "argv", ["benchmarks/model.py", "--rounds", "0"])
    with pytest.raises(SystemExit) as end:
        command.run(fail)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: wrong: ['--rounds', '0']\n"


def test_benchmark_is_restarted_with_the_allocator_of_the_command_line(monkeypatch):
    monkeypatch.setattr(command.allocator, "settings", lambda environment: {"MALLOC_EXAMPLE": "1"})
    monkeypatch.setattr(command.os, "environ", {"PATH": "/bin"})
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "benchmarks.model", "--eval"])
    calls = []
    monkeypatch.setattr(command.os, "execv", lambda *args: calls.append((args, dict(command.os.environ))))
    command.run(calls.append)  # the real execv does not return
    arguments = [sys.executable, "-m", "benchmarks.model", "--eval"]
    assert calls[0] == ((sys.executable, arguments), {"PATH": "/bin", "MALLOC_EXAMPLE": "1"})
