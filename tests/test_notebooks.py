"""Notebook files: paired with Python, without outputs, small. `pytest --nbmake notebooks/` runs them."""

import subprocess
import sys

import jupytext
import nbformat
import pytest

from tests.support.cli import ROOT, environment

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_notebook_has_a_python_version():
    scripts = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
    assert [path.stem for path in NOTEBOOKS] == scripts and len(scripts) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_matches_its_python_version_and_has_no_outputs(path):
    notebook, script = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells], (
        "run: jupytext --sync notebooks/*.ipynb"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), (
        "clear the outputs before committing"
    )
    assert path.stat().st_size < 100_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].source.startswith("# ")  # a title


def test_nbmake_reports_a_failing_cell(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", "x / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "fails.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbmake", "-n0", "-c", str(ROOT / "setup.cfg"), "fails.ipynb"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stdout, done.stdout


def test_ci_runs_the_notebooks():
    assert "\npytest --nbmake notebooks/\n" in (ROOT / ".ci/run").read_text()
