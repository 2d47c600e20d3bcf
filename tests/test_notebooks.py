"""Notebooks as files: paired, stripped, in step, small. `pytest --nbmake notebooks/` runs them."""

import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from tests.support.cli import environment

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_notebook_has_a_twin_in_python():
    twins = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
    assert [path.stem for path in NOTEBOOKS] == twins and len(twins) == 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_its_twin_without_outputs_and_small(path):
    notebook, twin = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in twin.cells], (
        "run: jupytext --sync notebooks/*.ipynb"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), (
        "clear the outputs before committing"
    )
    assert path.stat().st_size < 100_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].source.startswith("# ")  # a title


@pytest.mark.parametrize(("source", "code"), [("1 + 1", 0), ("1 / 0", 1)])
def test_a_broken_cell_fails_the_run(tmp_path, source, code):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbmake", "-n0", "-c", str(ROOT / "setup.cfg"), "one.ipynb"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("ZeroDivisionError" in done.stdout) == bool(code)


def test_ci_runs_the_notebooks():
    assert "\npytest --nbmake notebooks/\n" in (ROOT / ".ci/run").read_text()
