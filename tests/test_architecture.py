"""The laws of the house: who may import whom, and what the project says of itself."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from swin_lightning.data import readers as sources
from swin_lightning.tasks import classification as classifier
from tests.support.cli import environment

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "swin_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Modules that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def uses(path, *roots):
    return [name for name in imports(path) if any(name == r or name.startswith(r + ".") for r in roots)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0]
    if part == "models":
        assert not uses(path, "lightning", "torchmetrics", "wandb", "albumentations", "datasets", "swin_lightning.data")
    if part == "data":
        assert not uses(path, "swin_lightning.models", "swin_lightning.tasks.classification", "wandb")
    if part != "sweep":
        assert not uses(path, "swin_lightning.sweep", "sweeps")
    if part in ("optim.py", "classifier.py"):
        assert not uses(path, "swin_lightning.data", "swin_lightning.cli", "wandb")
    if part != "explore":  # pictures for people: only commands and notebooks ask for them, commands by name
        assert not uses(path, "swin_lightning.explore")
    if path.name != "transforms.py":
        assert not uses(path, "albumentations")
    if path.name not in ("tracking.py", "online.py"):
        assert not uses(path, "wandb")
    if str(path.relative_to(PACKAGE)) not in ("__main__.py", "sweep/config.py"):  # it asks the parser
        assert not uses(path, "swin_lightning.cli")
    assert path.read_text().count("\n") <= 400, "two rooms?"


def test_models_need_torch_alone():
    code = (
        "import sys; before = set(sys.modules); import torch; import swin_lightning.models as m; m.SwinTransformer();"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert not {"lightning", "torchmetrics", "wandb", "albumentations", "jsonargparse", "datasets"} & set(
        done.stdout.split()
    )


def test_both_ends_mean_the_same_by_no_label():
    # the classifier never imports the data's side: the two meet in the batch
    assert classifier.IGNORE_INDEX == sources.IGNORE_INDEX


def test_every_dependency_has_a_bound_and_a_reason():
    text = (ROOT / "setup.cfg").read_text()
    block = text.split("install_requires =\n")[1].split("\n\n")[0]
    lines = [line.strip() for line in block.splitlines()]
    reason = ""
    for line in lines:
        if line.startswith("#"):
            reason = line
        else:
            assert ">=" in line, line
            assert reason, line
    assert any("2.6.2" in line and "malware" in line for line in lines)


def test_environment_yml_installs_the_project_and_states_no_version_twice():
    from packaging.requirements import Requirement

    environment_yml = yaml.safe_load((ROOT / "environment.yml").read_text())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    *conda, pip = environment_yml["dependencies"]
    assert pip == {"pip": ["-e .[dev]"]}
    assert [name.partition("=")[0] for name in conda] == ["python", "pip"]
    version = conda[0].partition("=")[2]
    assert Requirement(f"python{setup['options']['python_requires']}").specifier.contains(version)


def test_the_readme_starts_with_the_two_commands_and_is_short():
    text = (ROOT / "README.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```bash\n")[1:]]
    assert "swin-lightning fit -c experiments/digits_swin_micro.yaml" in blocks[0]
    assert "pytest" in blocks[1]
    assert text.count("\n") < 200
