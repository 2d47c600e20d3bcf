"""Architecture: import rules, private names of other libraries, and what setup.cfg and environment.yml state."""

import ast
import configparser
import re
import subprocess
import sys
from functools import cache

import pytest
import yaml

from tests.support.cli import ROOT, environment

PACKAGE = ROOT / "swin_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

# part of the package -> what it must not import
FORBIDDEN = {
    "models": ("lightning", "torchmetrics", "jsonargparse", "swin_lightning.tasks", "swin_lightning.data"),
    "data": ("swin_lightning.models", "swin_lightning.tasks", "swin_lightning.callbacks", "swin_lightning.config"),
    "tasks": ("swin_lightning.data", "swin_lightning.config", "swin_lightning.runs", "swin_lightning.callbacks"),
    "optim.py": ("lightning", "swin_lightning.data", "swin_lightning.tasks"),
    "losses.py": ("lightning", "swin_lightning.data", "swin_lightning.tasks"),
    "batch.py": ("lightning", "swin_lightning.data", "swin_lightning.tasks", "swin_lightning.models"),
    "errors.py": ("torch", "lightning", "swin_lightning"),
    "runs.py": ("torch", "lightning", "swin_lightning.config", "swin_lightning.cli"),
    "callbacks.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "checkpointing.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "last_checkpoint.py": (
        "swin_lightning.tasks",
        "swin_lightning.data",
        "swin_lightning.config",
        "swin_lightning.cli",
    ),
    "ema.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "shutdown.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "non_finite.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "strategies.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "monitors.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
    "wandb_runs.py": ("torch", "lightning", "swin_lightning.config", "swin_lightning.cli"),
    "loggers.py": ("swin_lightning.tasks", "swin_lightning.data", "swin_lightning.config", "swin_lightning.cli"),
}
# library or module -> the only files that import it
RESERVED = {
    "albumentations": ("data/transforms.py",),
    "triton": ("models/window_attention_triton.py",),
    "swin_lightning.models.window_attention_triton": ("models/",),
    "wandb": ("loggers.py", "wandb_runs.py", "sweep/wandb_backend.py"),
    "sweeps": ("sweep/",),
    "swin_lightning.sweep": ("sweep/",),
    "swin_lightning.explore": ("explore/", "export/", "benchmark/inference.py"),
    "swin_lightning.benchmark": ("benchmark/",),
    "swin_lightning.cli": ("__main__.py",),
    "swin_lightning.commands": ("__main__.py", "cli.py", "help.py", "completion.py"),
}
# name -> reason; the list is as short as the public interfaces of the libraries allow
PRIVATE_NAMES = {
    "_exit": "os._exit is public in spite of its name (shutdown.py)",
    "_linear_pointwise": "torch's linear layer with GELU in one kernel, which only its compiler offers (linear.py)",
    "_forward_hooks": "a module does not say whether it has hooks (linear.py)",
    "_forward_pre_hooks": "a module does not say whether it has hooks (linear.py)",
}


# files without a test file of their own -> where their behaviour is tested
TESTED_ELSEWHERE = {
    "batch.py": "data/test_image_datamodule.py",
    "commands.py": "test_help.py",
    "noise.py": "test_cli.py",
    "last_checkpoint.py": "test_checkpointing.py",
    "rank_channel.py": "test_shutdown.py",
    "benchmark/augmentation_sheet.py": "test_benchmark.py",
    "benchmark/memory.py": "test_benchmark.py",
    "benchmark/step.py": "test_benchmark.py",
    "benchmark/throughput.py": "test_benchmark.py",
    "export/hub_folder.py": "test_hub.py",
    "model_card.py": "test_hub.py",
    "tasks/hub_mixin.py": "test_hub.py",
    "models/builders.py": "models/test_registry.py",
    "models/precision.py": "models/test_swin_v2.py",
    "sweep/sweep_figures.py": "sweep/test_results.py",
}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


@cache
def imports(path):
    """Modules that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def uses(path, *roots):
    return sorted(name for name in imports(path) if any(name == r or name.startswith(r + ".") for r in roots))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    name = name_of(path)
    assert not uses(path, *FORBIDDEN.get(name.split("/")[0], ()))
    for library, owners in RESERVED.items():
        if not name.startswith(owners):
            assert not uses(path, library), f"only {owners} may import {library}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_import_slow_libraries_where_they_are_used(path):
    if name_of(path).startswith(("explore/", "benchmark/")):  # not imported by `fit`
        return
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in body if isinstance(node, ast.ImportFrom) and node.module]
    slow = {"pandas", "matplotlib", "pyarrow", "datasets", "transformers", "torchvision"}
    assert not slow & {name.split(".")[0] for name in names}


def test_there_is_no_import_cycle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {name: {other for other in imports(path) if other in modules} - {name} for name, path in modules.items()}
    for name in graph:  # a package's __init__ may be imported by its own modules through names only
        graph[name] = {other for other in graph[name] if not name.startswith(f"{other}.")}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in sorted(graph):
        visit(name)


@cache
def defined_private_names():
    """Private functions, methods and attributes of self that the package defines."""
    names = set()
    for node in (node for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def foreign_private_names(path):
    """Private attributes that are not those of our own objects, and private names imported from other libraries."""
    tree, own = ast.parse(path.read_text(encoding="utf-8")), defined_private_names()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            receiver = node.value.id if isinstance(node.value, ast.Name) else ""
            if not (receiver in ("self", "cls") and node.attr in own):
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("swin_lightning"):
            yield from (alias.name for alias in node.names if re.match(r"_[a-z]", alias.name))


def test_private_names_of_other_libraries_are_the_listed_ones():
    found = {name for path in FILES for name in foreign_private_names(path)}
    assert found == set(PRIVATE_NAMES)
    assert len(PRIVATE_NAMES) <= 6 and all(PRIVATE_NAMES.values())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_have_one_purpose(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "split the file"
    assert ast.get_docstring(ast.parse(text)), "say in a docstring what the file is for"


def test_models_need_torch_alone():
    code = (
        "import sys; import swin_lightning.models as m; m.SwinTransformer();"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not {"lightning", "torchmetrics", "wandb", "albumentations", "jsonargparse", "datasets"} & loaded


def test_every_source_file_has_a_test_file():
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    missing = {name_of(path) for path in FILES if path.stem not in tests and not path.stem.startswith("__")}
    assert missing == TESTED_ELSEWHERE.keys()
    assert all((ROOT / "tests" / path).is_file() for path in TESTED_ELSEWHERE.values())


def test_every_dependency_has_a_bound_and_a_reason():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
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

    environment_yml = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    *conda, pip = environment_yml["dependencies"]
    assert pip == {"pip": ["-e .[dev]"]}
    assert [name.partition("=")[0] for name in conda] == ["python", "pip"]
    version = conda[0].partition("=")[2]
    assert Requirement(f"python{setup['options']['python_requires']}").specifier.contains(version)


def test_setup_cfg_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(setup["options"]["packages"].split()) == found | {"swin_lightning.experiments"}
