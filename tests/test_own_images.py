"""Runs on a user's own folder of images: splits that are drawn and kept, test images without labels."""

import csv
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from swin_lightning.callbacks import FromScratch
from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer
from swin_lightning.tasks import SwinClassifier
from tests.support.images import grey_png

CONFIG = {
    "model": {"init_args": {"backbone": {
        "class_path": "swin_lightning.models.SwinTransformer",
        "init_args": {"img_size": 16, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    }}},
    "data": {"class_path": "swin_lightning.data.ImageFolder",
             "init_args": {"image_size": 16, "batch_size": 4, "num_workers": 0}},
    "trainer": {"accelerator": "cpu", "max_epochs": 1},
}  # fmt: skip


def write_images(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(256, size=(20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def fit(folder, *options):
    (folder.parent / "own.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return main(["fit", "-c", str(folder.parent / "own.yaml"), "--data.path", str(folder), *options])


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_run_keeps_the_list_of_its_splits_and_resumes_with_no_other(tmp_path, capsys, caplog):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / name, 10)
    cli = fit(tmp_path / "pets")
    assert "test/acc " in capsys.readouterr().out
    assert "train: 14 images in 2 classes" in caplog.text
    splits = rows(cli.run.splits)
    assert [sum(row["split"] == split for row in splits) for split in ("train", "val", "test")] == [14, 3, 3]
    assert all((tmp_path / "pets" / row["label"]).is_dir() and row["label"] in row["path"] for row in splits)
    last, more = str(cli.run.last), "--trainer.max_epochs=2"
    (tmp_path / "pets" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"the splits differ from .*splits\.csv in .* rows"):
        fit(tmp_path / "pets", "--ckpt_path", last, more)
    shutil.copy(tmp_path / "pets" / "cat" / "1.png", tmp_path / "pets" / "cat" / "0.png")
    assert fit(tmp_path / "pets", "--ckpt_path", last, more).trainer.current_epoch == 2


def test_test_images_without_labels_are_predicted_and_not_scored(tmp_path, capsys, caplog):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / "train" / name, 10)
    write_images(tmp_path / "pets" / "test", 5)
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")  # other tests may have raised it
    cli = fit(tmp_path / "pets")
    said = "test: 5 images without labels: predictions will be written, and no accuracy computed"
    assert caplog.text.index(said) < caplog.text.index("Trainer.fit` stopped")
    assert "test/acc" not in capsys.readouterr().out
    found = rows(cli.run.predictions)
    assert [row["path"] for row in found] == [str(tmp_path / "pets" / "test" / f"{i}.png") for i in range(5)]
    assert {row["class_1"] for row in found} <= {"cat", "dog"}
    assert (cli.run.path / "curves.png").is_file()
    command = [
        "-c",
        str(tmp_path / "own.yaml"),
        "--data.path",
        str(tmp_path / "pets"),
        "--ckpt_path",
        str(cli.run.last),
    ]
    with pytest.raises(UserError, match=r"the test images have no labels.*the same command with `predict`"):
        main(["test", *command])
    assert len(rows(main(["predict", *command]).run.predictions)) == 5


def write_splits(root):
    for split in ("Training", "valid", "testing"):
        for name in ("cat", "dog"):
            write_images(root / split / name, 6)
    return root


def write_manifest(root):
    for name in ("cat", "dog"):
        write_images(root / name, 10)
    lines = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(10)]
    (root / "list.csv").write_text("\n".join(["filename,class", *lines]), encoding="utf-8")
    return root / "list.csv"


def write_table(root):
    labels, coarse = {"label": ["cat", "dog"] * 10}, {"coarse": [3, 7] * 10}
    images = [{"bytes": grey_png(i), "path": None} for i in range(20)]
    root.mkdir()
    features = {"image": datasets.Image(), "label": datasets.Value("string"), "coarse": datasets.Value("int64")}
    table = datasets.Dataset.from_dict({"image": images, **labels, **coarse}, features=datasets.Features(features))
    table.to_parquet(root / "train-00000-of-00001.parquet")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("write", "options", "classes"), [
    (write_splits, [], {"cat", "dog"}),
    (write_manifest, [], {"cat", "dog"}),
    (write_table, [], {"cat", "dog"}),
    (write_table, ["--data.label_column=coarse"], {"3", "7"}),
])  # fmt: skip
def test_layouts_run_to_an_accuracy_and_a_prediction_without_the_training_data(
    write, options, classes, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    cli = fit(write(tmp_path / "pets"), *options)
    assert "test/acc " in capsys.readouterr().out
    main(["report", str(cli.run.path)])
    shutil.rmtree(tmp_path / "pets")
    write_images(tmp_path / "new", 3)
    main(["predict", str(cli.run.path), str(tmp_path / "new"), "--output", str(tmp_path / "found.csv")])
    found = rows(tmp_path / "found.csv")
    assert len(found) == 3 and all({row["class_1"], row["class_2"]} == classes for row in found)
    assert (cli.run.path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("images", "weights", "parameters", "expected"),
    [(14, False, 5000, True), (14, False, 50_000, False), (30_000, False, 5000, False), (14, True, 5000, False)],
)
def test_training_from_scratch_on_few_images_is_said(images, weights, parameters, expected, caplog, tmp_path):
    backbone = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    torch.save({"model": SwinClassifier(SwinTransformer(**backbone), 2).state_dict()}, tmp_path / "x.pth")
    module = SwinClassifier(SwinTransformer(**backbone), 2, weights=str(tmp_path / "x.pth") if weights else None)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(sources={"train": range(images)}), ckpt_path=None, is_global_zero=True
    )
    FromScratch(parameters).on_fit_start(trainer, module)
    assert ("training 0.0 M parameters from scratch on 14 images: expect a low accuracy" in caplog.text) == expected
