"""`swin-lightning predict CHECKPOINT IMAGES...`: every image once, whatever interrupts it."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.predict import PathList, collect
from swin_lightning.prediction_file import PredictionFile
from tests.support.classifier import train_classifier
from tests.support.cli import environment

COLUMNS = ["path", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folder and test images; the data it was trained on is gone."""
    run, paths, probabilities = train_classifier(tmp_path_factory.mktemp("predict"))
    data = run.path.parent / "data"
    (data / "test").rename(run.path.parent / "images")
    shutil.rmtree(data)
    return run, [run.path.parent / "images" / path.relative_to(data / "test") for path in paths], probabilities


@pytest.fixture
def photos(trained):
    """The test images in the working directory."""
    shutil.copytree(trained[0].path.parent / "images", "photos")
    return sorted(map(str, Path("photos").rglob("*.png")))


def predict(trained, *arguments):
    main(["predict", str(trained[0].best), *map(str, arguments), "--num_workers=0", "--accelerator=cpu", "--devices=1"])


def read(path="predictions.csv"):
    with Path(path).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[:7] == COLUMNS[: len(header)]
    return {row[0]: row[1:] for row in rows}, len(rows)


def test_predictions_are_those_of_the_test(trained, photos, capsys):
    predict(trained, "photos", "--batch_size=4")
    rows, count = read()
    assert list(rows) == photos and count == 6
    found = [dict(zip(row[::2], map(float, row[1::2]), strict=True)) for row in rows.values()]
    found = torch.tensor([[row[name] for name in ("cat", "dog", "eel")] for row in found])
    torch.testing.assert_close(found, trained[2], atol=1e-6, rtol=0)
    assert all(row[1] >= row[3] >= row[5] for row in rows.values())
    output = capsys.readouterr()
    assert output.out == "predictions: predictions.csv\n"
    assert "4/6 images  " in output.err and "6/6 images  " in output.err and " images/s  0:00:00 left\n" in output.err
    assert output.err.count("6/6 images  ") == 1


def test_torn_file_is_continued(trained, photos, capsys):
    predict(trained, "photos", "--output=all.csv", "--top_k=2")
    complete = Path("all.csv").read_bytes()
    for size in (len(complete) // 2, len(complete) - 3):
        Path("part.csv").write_bytes(complete[:size])
        predict(trained, "--top_k=2", "photos", "--output", "part.csv", photos[0], photos[0])
        assert Path("part.csv").read_bytes() == complete
    assert "continuing part.csv: 5 of 6 images are done" in capsys.readouterr().err


def test_parquet(trained, photos):
    predict(trained, photos[0], photos[1], "--output=x.parquet")
    predict(trained, "photos", "--output=x.parquet")
    predict(trained, "photos", "--output=x.csv")
    table, rows = pd.read_parquet("x.parquet"), read("x.csv")[0]
    assert table.columns.tolist() == COLUMNS and table["path"].tolist() == photos
    assert [str(value) for value in table["class_1"]] == [row[0] for row in rows.values()]
    assert table["probability_3"].tolist() == [float(row[5]) for row in rows.values()]


def test_unreadable_images_are_counted_and_tried_again(trained, photos, capsys, caplog):
    good = Path(photos[2]).read_bytes()
    Path(photos[2]).write_bytes(good[:50])
    predict(trained, "photos")
    assert list(read()[0]) == [*photos[:2], *photos[3:]]
    assert f"skipped 1 unreadable images: {photos[2]}" in caplog.text
    with pytest.raises(UserError, match=rf"cannot read image {photos[2]}: .*; repair or remove the file"):
        predict(trained, "photos", "--on_bad_image=raise")
    Path(photos[2]).write_bytes(good)
    predict(trained, "photos")
    assert list(read()[0]) == [*photos[:2], *photos[3:], photos[2]]
    for path in photos[:2]:
        Path(path).write_bytes(b"")
    predict(trained, *photos[:2], "--output=none.csv")
    assert "predictions are not written: there are none" in capsys.readouterr().out
    assert not Path("none.csv").exists()


def test_file_of_another_checkpoint_is_not_continued(trained, photos, tmp_path):
    predict(trained, *photos[:3])
    before = Path("predictions.csv").read_bytes()
    content = torch.load(trained[0].best, weights_only=True)
    content["state_dict"]["head.bias"] += torch.tensor([0.1, 0.0, 0.0])
    torch.save(content, "other.ckpt")
    with pytest.raises(UserError, match=r"has predictions of another checkpoint or precision: photos/cat/0.png "):
        main(["predict", "other.ckpt", "photos", "--num_workers=0", "--accelerator=cpu"])
    with pytest.raises(UserError, match="has predictions of other images; give another file or remove it"):
        predict(trained, *photos[3:])
    with pytest.raises(UserError, match="exists with the columns path, class_1"):
        predict(trained, "photos", "--top_k=1")
    assert Path("predictions.csv").read_bytes() == before


def test_inputs(monkeypatch, tmp_path):
    Path("lists").mkdir()
    for name in ("a.png", "lists/b.png", "lists/odd name.tif"):
        Path(name).write_bytes(b"")
    Path("lists/one.csv").write_text("label,path\ncat,b.png\ndog,../a.png\ncat,/far/c.png\n", encoding="utf-8")
    Path("two.csv").write_text('"lists/odd name.tif",3\na.png,4\n', encoding="utf-8-sig")
    Path("three.txt").write_text("a, b.png\n\nlists/b.png\n", encoding="utf-8")
    Path("four.tsv").write_text("id\tfile_name\n7\ta.png\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x.png\r\n\ny.png"))
    assert list(collect(["lists/one.csv"])) == ["lists/b.png", "lists/../a.png", "/far/c.png"]
    assert list(collect(["two.csv", "three.txt"])) == ["lists/odd name.tif", "a.png", "a, b.png", "lists/b.png"]
    assert list(collect(["four.tsv", "-"])) == ["a.png", "x.png", "y.png"]
    assert list(collect(["a.png", "lists"])) == ["a.png", "lists/b.png", "lists/odd name.tif"]
    Path("empty").mkdir()
    for wrong, message in {"empty": "no images in folder 'empty'", "z.png": "'z.png': no such file or folder"}.items():
        with pytest.raises(UserError, match=message):
            list(collect([wrong]))


def test_leftovers_of_other_programs_are_no_images_and_said(capsys):
    for name in ("a/x.png", "a/.ipynb_checkpoints/x.png", "a/._x.png", "__MACOSX/x.png", "@eaDir/x.png", "notes.md"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_bytes(b"")
    assert list(collect(["photos"])) == ["photos/a/x.png"]
    error = capsys.readouterr().err
    assert error.startswith("photos: 1 images (left out: ") and "hidden or system files" in error and ".md" in error


def test_ctrl_c_keeps_the_rows_and_says_how_to_continue(trained, photos, capsys, monkeypatch):
    append = PredictionFile.append

    def interrupt(*arguments):
        append(*arguments)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFile, "append", interrupt)
        with pytest.raises(SystemExit) as caught:
            predict(trained, "photos", "--batch_size=2")
    assert caught.value.code == 130 and read()[1] == 2
    assert "predictions.csv is incomplete; the same command continues\n" in capsys.readouterr().err
    predict(trained, "photos")
    assert list(read()[0]) == photos


def test_path_list_keeps_names_of_any_bytes():
    names = ["a.png", "", "caf\udce9/猫.png"]
    paths = PathList(names)
    assert [paths.text(i) for i in range(len(paths))] == names and paths[2] == Path(names[2])


@pytest.mark.parametrize(("arguments", "message"), [
    (["--batch_size=0"], "--batch_size 0 must be at least 1"),
    (["--top_k=0"], "--top_k 0 must be at least 1"),
    (["--num_workers=-1"], "--num_workers -1 must be at least 0"),
    (["--output=x.json"], "--output 'x.json' must end with .csv or .parquet"),
    (["--on_bad_image=hide"], "invalid choice: 'hide'"),
    (["-"], "no images in -"),
])  # fmt: skip
def test_wrong_arguments(trained, arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UserError, match=message):
        main(["predict", str(trained[0].best), *(arguments if arguments == ["-"] else ["x.png", *arguments])])


def test_help_names_the_way_with_an_experiment(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "CHECKPOINT IMAGES" in text and "swin-lightning predict -c EXPERIMENT --help" in text


def many(photos, count):
    """Hard links to the images, in one folder."""
    Path("many").mkdir()
    for i in range(count):
        os.link(photos[i % len(photos)], f"many/{i:05}.png")
    return [f"many/{i:05}.png" for i in range(count)]


def rows_of(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_image_once_after_three_kills(trained, photos, suffix, devices):
    paths = many(photos, 20_000 if devices == "1" else 3000)
    rows = Path("out.csv" if suffix == "csv" else "out.parquet.part")
    options = [f"--output=out.{suffix}", f"--devices={devices}", "--accelerator=cpu", "--num_workers=0"]
    command = [sys.executable, "-m", "swin_lightning", "predict", str(trained[0].best), "many", *options]
    memory = []
    for share in (0.2, 0.4, 0.7, None):
        process = subprocess.Popen(command, env=environment(), start_new_session=True)
        while process.poll() is None:
            time.sleep(0.05)
            if rows_of(rows) > len(paths) * 0.75:
                lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
                memory += [int(line.split()[1]) for line in lines if line.startswith("VmRSS")]
            if share is not None and rows_of(rows) > share * len(paths):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.returncode == (0 if share is None else -signal.SIGKILL)
    names = list(read("out.csv")[0]) if suffix == "csv" else pd.read_parquet("out.parquet")["path"].tolist()
    assert sorted(names) == paths and (suffix == "parquet" or read("out.csv")[1] == len(paths))
    if suffix == "csv" and devices == "1":
        assert len(memory) > 10 and max(memory) - min(memory) < 20_000  # KiB over 5,000 images
