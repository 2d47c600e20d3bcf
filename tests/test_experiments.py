"""Experiments and overlays run for a few steps, on generated data in the layout of their data module."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from swin_lightning import SimMIM, SwinClassifier
from swin_lightning.cli import main
from swin_lightning.config import flatten, load
from swin_lightning.models import swin_tiny_patch4_window7_224
from swin_lightning.models.weights import save_weights
from tests.support.cli import DIGITS, EXPERIMENTS, SHORT

CPU = str(EXPERIMENTS / "hardware" / "cpu.yaml")
FILES = sorted(path for path in EXPERIMENTS.glob("*.yaml") if path.name != "base.yaml")
# one experiment per model family and data module; the others differ in numbers that `test_recipes.py` checks for
# ImageNet, and in the number of classes for CIFAR-100: their training is a slow test
FAMILIES = (
    "digits_swin_micro",
    "folder_swin_tiny_patch4_window7_224_ft",
    "cifar10_swin_micro",
    "cifar10_swin_tiny_patch2_window4_32",
    "cifar100_swin_tiny_patch4_window7_224_ft_1k",
    "imagenet_swin_tiny_patch4_window7_224",
    "imagenet_swin_base_patch4_window12_384_ft_22k",
    "imagenet_swinv2_tiny_patch4_window8_256",
    "imagenet_simmim_swinv2_base_patch4_window12_192_800ep",
)
TRAINED = [pytest.param(path, id=path.stem, marks=() if path.stem in FAMILIES else pytest.mark.slow) for path in FILES]
OVERLAYS = sorted(path for folder in ("debug", "hardware") for path in (EXPERIMENTS / folder).glob("*.yaml"))


def generated(kind, folder):
    """Options for a data module, with a folder of random images in its layout if it needs one."""
    rng = np.random.default_rng(0)
    if kind.startswith("CIFAR"):
        from datasets import ClassLabel, Dataset, Features
        from datasets import Image as ImageFeature

        label = "label" if kind == "CIFAR10" else "fine_label"
        classes = 10 if kind == "CIFAR10" else 100
        features = Features({"img": ImageFeature(), label: ClassLabel(num_classes=classes)})
        for split, size in (("train", 200), ("test", 100)):
            images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(size)]
            columns = {"img": images, label: [i % classes for i in range(size)]}
            Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return ["--data.path", str(folder), "--data.val_size=20"]
    if kind == "ImageNet":
        for split, size in (("train", 6), ("val", 2)):
            for name in ("n01440764", "n15075141"):
                (folder / split / name).mkdir(parents=True)
                for i in range(size):
                    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
                    Image.fromarray(image).save(folder / split / name / f"{i}.JPEG")
        return ["--data.path", str(folder), "--data.image_size=64"]
    if kind == "ImageFolder":
        for i in range(24):
            path = folder / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(path)
        return ["--data.path", str(folder)]
    return []


def small_backbone(path, config):
    """Options for a small network of the same family, and small images; `test_recipes.py` builds the real ones."""
    family, _, size = config["model"]["init_args"]["backbone"]["class_path"].rsplit(".", 1)[-1].partition("_")
    if size.endswith("_32") or path.stem == "imagenet_swin_tiny_patch4_window7_224":  # one large one as it is
        return []
    name = "SwinTransformerV2" if family in ("swinv2", "SwinTransformerV2") else "SwinTransformer"
    sizes = {"img_size": 32, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    backbone = [f"--model.backbone=swin_lightning.models.{name}"]
    return [*backbone, *(f"--model.backbone.{key}={value}" for key, value in sizes.items()), "--data.image_size=32"]


@pytest.mark.parametrize("path", TRAINED)
def test_experiment_trains_validates_and_tests(path, tmp_path):
    config = yaml.safe_load(path.read_text())
    (tmp_path / "data").mkdir()
    data = generated(config["data"]["class_path"].rsplit(".", 1)[-1], tmp_path / "data")
    small = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1"]
    limits = [f"--trainer.limit_{split}_batches=1" for split in ("val", "test")]
    cli = main(["fit", "-c", str(path), "-c", CPU, *data, *small_backbone(path, config), *small, *limits])
    assert cli.trainer.global_step == 2 and cli.run_dir.parent.name == path.stem
    with (cli.run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    # a new head: each loss is near that of a uniform guess, or of zeros in place of normalised pixels
    uniform = 1.0 if isinstance(cli.model, SimMIM) else np.log(cli.model.num_classes)
    assert losses == pytest.approx([uniform] * 2, rel=0.35)
    assert cli.model.backbone.layers[-1].blocks[-1].drop_path.p == pytest.approx(
        config["model"]["init_args"]["backbone"].get("init_args", {}).get("drop_path_rate", 0.0)
    )  # as in the file
    assert (cli.run_dir / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_has_command_hardware_accuracy_and_protocol(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"swin-lightning fit -c experiments/{path.name}" in header
    assert all(word in header for word in ("Command:", "Hardware:", "Expected:", "Protocol:"))


@pytest.mark.slow
def test_validate_prints_the_published_accuracy(tmp_path, capsys):
    generated("ImageNet", tmp_path)
    shutil.rmtree(tmp_path / "train")  # validation needs no training images, and a part of the classes
    weights = str(tmp_path / "swin_tiny_patch4_window7_224_22kto1k_finetune.pth")
    classifier = SwinClassifier(swin_tiny_patch4_window7_224(), num_classes=1000)
    classifier.head.bias.data[0] = 1e3  # always predicts class 0
    save_weights(classifier, weights, "official")
    experiment = str(EXPERIMENTS / "imagenet_swin_tiny_patch4_window7_224_ft_22k.yaml")
    main(["validate", "-c", experiment, "-c", CPU, "--model.weights", weights, "--data.path", str(tmp_path),
          "--data.image_size=56", "--data.num_workers=0"])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "measured   top-1 50.0  top-5 50.0  resize 64, crop 56" in lines
    assert "published  top-1 80.9  top-5 96.0  ImageNet-22K, then 1K; resize 256, crop 224" in lines


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_overlay_changes_what_it_states_and_nothing_else(path):
    text = path.read_text()
    assert "\n# Overlay: " in text
    plain, merged = (flatten(load(["-c", DIGITS, *more]).as_dict()) for more in ([], ["-c", str(path)]))
    stated = flatten(yaml.safe_load(text))
    assert {key: merged[key] for key in stated} == stated
    assert {key for key in merged if merged[key] != plain[key]} <= {*stated, "config"}


@pytest.mark.parametrize("name", ["hardware/cpu", "debug/fast", "debug/profile"])
def test_overlay_runs_with_an_experiment(name):
    cli = main(["fit", "-c", DIGITS, "-c", name, *SHORT])
    assert cli.trainer.global_step >= 1


@pytest.mark.slow
def test_overfit_overlay_reaches_a_small_loss(tmp_path):
    cli = main(["fit", "-c", DIGITS, "-c", str(EXPERIMENTS / "debug" / "overfit.yaml"), "--data.batch_size=16",
                "--data.rotate=0", "--data.crop=none", "--model.label_smoothing=0",
                "--trainer.max_epochs=40"])  # fmt: skip
    assert float(cli.trainer.callback_metrics["train/loss"]) < 0.1


def test_readme_lists_every_experiment():
    text = (EXPERIMENTS / "README.md").read_text()
    assert all(f"`{path.stem}`" in text for path in FILES)
    assert all(Path(path).is_file() for path in FILES)
