"""Entry point: exit codes and output of the process."""

import subprocess
import sys

import pytest

from swin_lightning import __version__
from swin_lightning.__main__ import console
from swin_lightning.commands import overview
from tests.support.cli import environment


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["swin-lightning", *arguments])
    try:
        console()
    except SystemExit as ended:
        return ended.code or 0
    return 0


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_overview_is_printed(arguments, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == overview() + "\n"


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"swin-lightning {__version__}\n"


def test_unknown_command_exits_with_2(monkeypatch, capsys):
    assert run(monkeypatch, "fitt") == 2
    assert capsys.readouterr() == ("", "error: unknown command 'fitt'; did you mean fit?\n")
    assert run(monkeypatch, "--model.lr=1") == 2
    assert "choose one of fit, validate" in capsys.readouterr().err


def test_debug_variable_shows_the_traceback_of_a_user_error(monkeypatch, capsys):
    monkeypatch.setenv("SWIN_LIGHTNING_DEBUG", "1")
    assert run(monkeypatch, "fit", "--help", "-c", "nowhere") == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)") and "find_experiment" in error
    assert error.endswith("error: -c nowhere: no such file or experiment; `swin-lightning experiments` lists them\n")


def test_closed_output_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", "input(); import runpy; runpy.run_module('swin_lightning', run_name='__main__')"],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()  # as by `swin-lightning | head -0`, before anything is written
    with process:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_other_broken_pipes_keep_their_traceback(monkeypatch):
    def command(arguments):
        raise BrokenPipeError("of a worker process")

    monkeypatch.setattr("swin_lightning.__main__.load_command", lambda name: command)
    with pytest.raises(BrokenPipeError, match="of a worker process"):
        run(monkeypatch, "models")
