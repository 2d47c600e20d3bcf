"""Experiments by name, and the command that lists them."""

import importlib.resources
from pathlib import Path

import pytest

from swin_lightning.errors import UserError
from swin_lightning.experiment_files import description, experiments, find_experiment, installed_experiments


def test_experiment_by_name_prefers_the_working_directory():
    installed = installed_experiments()
    assert find_experiment("digits_swin_micro") == installed / "digits_swin_micro.yaml"
    assert find_experiment("hardware/cpu") == installed / "hardware" / "cpu.yaml"
    assert find_experiment("experiments/digits_swin_micro.yaml") == installed / "digits_swin_micro.yaml"
    Path("experiments").mkdir()
    own = Path("experiments/digits_swin_micro.yaml")
    own.write_text("", encoding="utf-8")
    assert find_experiment("digits_swin_micro") == own
    own = Path("digits_swin_micro.yaml")
    own.write_text("", encoding="utf-8")
    assert find_experiment("digits_swin_micro") == own


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits_swin_macro", "did you mean digits_swin_micro?"),
        ("nothing/like/it.yaml", "`swin-lightning experiments` lists them"),
    ],
)
def test_unknown_experiment(name, words):
    with pytest.raises(UserError, match=f"-c {name}: no such file or experiment") as caught:
        find_experiment(name)
    assert words in str(caught.value)


def test_list_has_every_file_with_its_first_sentence(capsys):
    experiments([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "experiments: swin-lightning fit -c NAME"
    assert (
        "overlays: swin-lightning fit -c EXPERIMENT -c NAME" in lines and "sweeps: swin-lightning sweep NAME" in lines
    )
    rows = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    installed = installed_experiments()
    names = {path.relative_to(installed).with_suffix("").as_posix() for path in installed.rglob("*.yaml")}
    assert {row[0] for row in rows} == {name.removeprefix("sweeps/") for name in names - {"base"}}
    assert all(len(row) == 2 and not row[1].endswith(".") for row in rows), "a header has no sentence"
    described = dict(rows)
    assert described["hardware/cpu"] == "CPU, float32"
    assert described["cifar10_swin_micro"].endswith("with 0.4 M parameters and light augmentation")


def test_list_begins_with_the_working_directory(capsys):
    Path("experiments").mkdir()
    Path("experiments/digits_swin_micro.yaml").write_text("# Mine: v1.5. With more.\n\n# Second\n", encoding="utf-8")
    Path("experiments/plain.yml").write_text("model: {}\n# later\n", encoding="utf-8")
    experiments(["digits_swin_micro"])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "experiments: swin-lightning fit -c NAME", "  digits_swin_micro  Mine: v1.5"
    ]  # fmt: skip
    assert description(Path("experiments/plain.yml")) == ""
    with pytest.raises(UserError, match="no experiment contains 'nothing'"):
        experiments(["nothing"])


def test_files_are_a_package_in_every_kind_of_installation():
    assert (importlib.resources.files("swin_lightning.experiments") / "base.yaml").is_file()
