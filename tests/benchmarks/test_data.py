"""Our data pipeline against the PIL pipeline."""

import re

import numpy as np
import pytest
from PIL import Image

from benchmarks import data as benchmark
from benchmarks.baseline_pipeline import OPERATIONS, BaselineDataset
from swin_lightning.data import ImageFolder, rand_augment
from tests.support.cli import DIGITS
from tests.support.images import noise

FOLDER = ["-c", DIGITS, "--data=swin_lightning.data.ImageFolder", "--data.image_size=32"]


@pytest.fixture
def data(photographs):
    module = ImageFolder(photographs, image_size=32, rand_augment="rand-m9-mstd0.5-inc1")
    module.sources["train"] = module.load("train")
    return module


def test_compare_measures_every_round(data, monkeypatch):
    calls = []

    def rate(loader, epoch):
        loader.sampler.set_epoch(epoch)
        calls.append((type(loader.dataset).__name__, epoch, len(list(loader.sampler))))
        return 100.0 * epoch + len(calls)

    monkeypatch.setattr(benchmark, "epoch_rate", rate)
    ours, baseline = benchmark.compare(data, 25)
    names = ["ImageDataset", "BaselineDataset"]
    assert calls == [(name, epoch, 25) for epoch in range(6) for name in names]  # epoch 0 starts the processes
    assert ours == [103.0, 205.0, 307.0, 409.0, 511.0]
    assert baseline == [104.0, 206.0, 308.0, 410.0, 512.0]


@pytest.mark.slow
def test_command_prints_rates_and_ratio(photographs, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    benchmark.main([*FOLDER, f"--data.path={photographs}", "--data.crop=random_resized", "--images=10",
                    "--workers=2"])  # fmt: skip
    rates, ratio, workers, scaling = capsys.readouterr().out.splitlines()[-4:]
    assert re.fullmatch(r"ours \d+ images/s, PIL \d+ images/s; one loader process each", rates)
    assert re.fullmatch(r"ours with 2 loader processes \d+ images/s, with one \d+", workers)
    for line in (ratio, scaling):
        assert re.fullmatch(r"ratio [\d.]+ \(from [\d.]+ to [\d.]+ in 1 rounds\)", line)


def test_number_of_loader_processes(data, monkeypatch):
    monkeypatch.setattr(benchmark, "epoch_rate", lambda loader, epoch: 100.0 * loader.num_workers + epoch)
    one, several = benchmark.compare_workers(data, 25, 2)
    assert one == [101.0, 102.0, 103.0, 104.0, 105.0] and several == [201.0, 202.0, 203.0, 204.0, 205.0]


def test_baseline_yields_normalized_float_images(data):
    item = BaselineDataset(data)[0, 3]
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype.is_floating_point
    assert (item["target"], item["index"]) == (data.sources["train"][3][1], 3)
    pixels = data.denormalize(item["image"][None])
    assert (data.normalize(pixels)[0] - item["image"]).abs().max() < 1e-5  # whole pixel values


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_baseline_operations_equal_ours(name):
    image = Image.fromarray(noise())
    ours = rand_augment.RAND_AUGMENT_OPS[name](np.asarray(image), 1, 0.7, (1, 2, 3)).astype(int)
    difference = np.abs(ours - np.asarray(OPERATIONS[name](image, 1, 0.7, (1, 2, 3))))
    assert difference.mean() < (6 if name in ("Rotate", "ShearX", "ShearY") else 0.01)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-c", DIGITS, "--images=0"], "--images 0 must be at least 1"),
        (["-c", DIGITS, "--workers=0"], "--workers 0 must be at least 1"),
        (["-c", DIGITS], "the PIL pipeline needs data.crop=random_resized and a local data set of image files"),
        (["-c", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_user_errors_are_one_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        benchmark.main(args)
    assert "\n" not in str(error.value)
