"""Features of a run: values, files, and what they refuse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from swin_lightning.cli import main
from swin_lightning.data import Digits
from swin_lightning.errors import UserError
from swin_lightning.explore.features import extract_features, read_features
from tests.support.images import write_image


def test_file_has_the_features_of_the_backbone_in_order(run, loaded, capsys):
    main(["features", str(run), "--output", "out/f.parquet", "--images", "40"])
    table = pd.read_parquet("out/f.parquet")
    assert table["split"].tolist() == ["train"] * 40 + ["test"] * 40
    assert "out/f.parquet (80 images, 128 features)" in capsys.readouterr().out
    model, data = loaded
    test = Digits(num_workers=0)
    test.sources["test"] = test.load("test")
    images = torch.stack([torch.from_numpy(test.sources["test"][i][0]) for i in range(40)]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.backbone(data.normalize(images))
    train = read_features("out/f.parquet", "train")
    first = torch.from_numpy(test.load("train")[0][0]).permute(2, 0, 1)[None]  # evaluation pixels here too
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(train.values[:1]), model.backbone(data.normalize(first)), rtol=1e-4, atol=1e-5
        )
    assert train.names == [str(i) for i in range(40)]
    found = read_features("out/f.parquet", "test")
    torch.testing.assert_close(torch.from_numpy(found.values), expected, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == [int(label) for label in test.sources["test"].labels[:40]]
    assert found.class_names == [str(k) for k in range(10)]
    assert table["class"].tolist()[40:] == [str(label) for label in found.labels]


def test_checkpoint_and_data_of_another_experiment_or_folder(run, capsys):
    short = ["--split", "val", "--images", "3"]
    last, best = (str(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    main(["features", last, "digits_simmim_swin_micro", *short, "--output", "a.parquet"])
    main(["features", best, *short, "--output", "b.parquet"])
    first, second = (read_features(f"{name}.parquet", "val") for name in "ab")
    assert first.labels.tolist() == second.labels.tolist()
    for name in ("a", "b"):
        write_image(Path("pictures") / f"{name}.png")
    main(["features", str(run), "pictures", "--output", "c.parquet"])
    found = read_features("c.parquet", "predict")
    assert found.labels.tolist() == [-1, -1] and all(name.startswith("pictures") for name in found.names)


def test_extraction_ignores_unreadable_images(loaded):
    model, _ = loaded
    data = Digits(num_workers=0, eval_batch_size=8, on_bad_image="skip")
    data.sources["test"] = data.load("test").subset(np.arange(10))
    every = extract_features(model, data, "test")
    assert every.values.shape == (10, 128) and every.names == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--output", "f.csv"], r"--output 'f.csv' must end with \.parquet"), (["--images", "0"], "--images 0"),
     (["no_such_experiment"], "no_such_experiment")],
)  # fmt: skip
def test_mistakes(run, args, words):
    with pytest.raises(UserError, match=words):
        main(["features", str(run), *args])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_features("missing.parquet", "test")
    (tmp_path / "a.parquet").write_text("no parquet")
    pd.DataFrame({"a": [1]}).to_parquet("b.parquet")
    for name in "ab":
        with pytest.raises(UserError, match="not a file of `swin-lightning features`"):
            read_features(f"{name}.parquet", "test")
