"""Completion scripts, tried in bash."""

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from swin_lightning.cli import main
from swin_lightning.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(["completion", "bash"])
    path = tmp_path_factory.mktemp("completion") / "completion.bash"
    path.write_text(output.getvalue(), encoding="utf-8")
    return path


def complete(script, *words):
    """The completions of the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _swin_lightning;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fi"], {"fit"}),
        (["fit", "--model.l"], {"--model.label_smoothing", "--model.loss", "--model.lr"}),
        (["fit", "--data.batch"], {"--data.batch_size"}),
        (["fit", "--trainer.max_e"], {"--trainer.max_epochs"}),
        (["fit", "-c", "dig"], {"digits_swin_micro"}),
        (["fit", "-c", "hardware/c"], {"hardware/cpu"}),
        (["fit", "--model.lr_schedule", "co"], {"cosine", "constant"}),
        (["fit", "--model.lr_schedule=co"], {"--model.lr_schedule=cosine", "--model.lr_schedule=constant"}),
        (["export", "--form"], {"--format"}),
        (["nothing", "--x"], set()),
    ],
)
def test_bash_completes(script, words, expected):
    assert expected <= set(complete(script, "swin-lightning", *words))
    if not expected:
        assert complete(script, "swin-lightning", *words) == []


def test_experiments_of_the_working_directory_are_completed(script):
    Path("experiments").mkdir()
    Path("experiments/pets_swin.yaml").write_text("")
    assert "pets_swin" in complete(script, "swin-lightning", "fit", "-c", "pet")


def test_script_is_static(script):
    assert "python" not in script.read_text(encoding="utf-8")


def test_unknown_shell_is_refused():
    with pytest.raises(UserError, match="fish"):
        main(["completion", "fish"])
