"""What is installed: the archives are complete, and in a new environment the documented commands work in any folder."""

import configparser
import csv
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.support.cli import ROOT

BUILD = "from setuptools import build_meta; build_meta.build_{}('{}')"
DERIVED = ("PKG-INFO", "swin_lightning.egg-info/", "swin_lightning/experiments/", "build/")  # written by setuptools


def requirements(*options):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for section, option in options:
        yield from (Requirement(line) for line in setup[section][option].splitlines() if line and line[0] != "#")


def test_constraints_are_within_the_bounds_and_complete():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    declared = list(requirements(("options", "install_requires"), ("options.extras_require", "dev")))
    assert len(declared) > 30
    for requirement in declared:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def run(*command, cwd, **environment):
    """A process that knows nothing of this checkout."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = list(map(str, command))
    done = subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source distribution of the committed and new files, and the wheel that is built from it."""
    root = tmp_path_factory.mktemp("archives")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        target = root / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        else:
            target.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-c", BUILD.format("sdist", root), cwd=root / "checkout")
    (sdist,) = root.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "sdist", filter="data")
    (source,) = (root / "sdist").iterdir()
    run(sys.executable, "-c", BUILD.format("wheel", root), cwd=source)
    (wheel,) = root.glob("*.whl")
    return names, source, wheel


@pytest.fixture(scope="module")
def python(archives, tmp_path_factory):
    """The interpreter of a new environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", archives[2], cwd=folder)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    scheme = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # a line of a .pth file adds a folder, not the .pth files in it: an editable installation stays unknown
    (Path(scheme) / "dependencies.pth").write_text("\n".join(paths), encoding="utf-8")
    return python


@pytest.mark.slow
def test_sdist_is_the_repository(archives):
    names, source, _ = archives
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert set(names) - {"swin_lightning/experiments"} <= found
    assert {name for name in found - set(names) if not name.startswith(DERIVED)} == set()


@pytest.mark.slow
def test_wheel_has_the_package_with_its_data_alone(archives):
    names, _, wheel = archives
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {name for name in names if name.startswith("swin_lightning/") and name != "swin_lightning/experiments"}
    data = {f"swin_lightning/{name}" for name in names if name.startswith("experiments/")}
    assert ours <= found <= ours | data
    assert {name for name in data if name.endswith((".yaml", ".json", ".sh", ".sbatch"))} <= found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_documented_commands_in_an_empty_folder(python, tmp_path):
    command, options = python.with_name("swin-lightning"), {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    where = run(python, "-c", "import swin_lightning; print(swin_lightning.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1]) and not list(tmp_path.iterdir())
    assert "  digits_swin_micro  " in run(command, "experiments", cwd=tmp_path)
    run(python, "-c", "import swin_lightning.experiments", cwd=tmp_path)
    output = run(command, "fit", "-c", "digits_swin_micro", "--trainer.max_epochs=2", cwd=tmp_path, **options)
    assert "test/acc " in output
    (folder,) = (tmp_path / "runs" / "digits_swin_micro").iterdir()
    run(command, "test", "-c", "experiments/digits_swin_micro.yaml", "--ckpt_path=best", cwd=tmp_path, **options)
    run(command, "sweep", "digits", "--count=1", "--local", cwd=tmp_path, **options)
    for i in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 7, 3), 80 * i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    run(command, "predict", folder, "photos", "--output", "predictions.csv", cwd=tmp_path, **options)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"photos/{i}.png" for i in range(3)]


@pytest.mark.slow
def test_tests_of_the_sdist_pass(archives):
    _, source, _ = archives
    files = ("tests/test_config.py", "tests/test_experiment_files.py", "tests/models/test_weight_formats.py")
    output = run(sys.executable, "-m", "pytest", "-n0", *files, cwd=source, PYTHONPATH=str(source))
    assert " passed" in output
