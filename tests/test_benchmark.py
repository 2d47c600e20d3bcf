"""`swin-lightning benchmark`: data throughput, augmentation sheet, time and memory of a step."""

import re

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule
from PIL import Image
from torch.utils.data import DataLoader

from swin_lightning.benchmark import benchmark, memory, step, throughput
from swin_lightning.benchmark.augmentation_sheet import save_augmentation_sheet
from swin_lightning.config import instantiate, load
from tests.support.cli import DIGITS

CPU = torch.device("cpu")


@pytest.fixture
def digits():
    """Data module and model of the digits experiment, with other options."""

    def build(*overrides):
        data, model = instantiate(load(["-c", DIGITS, *overrides]))
        data.setup("fit")
        return data, model

    return build


# the command


def test_help_lists_both_subjects(capsys):
    with pytest.raises(SystemExit) as end:
        benchmark(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert re.search("data +throughput of the data pipeline", out)
    assert re.search("step +time and peak memory", out)


@pytest.mark.parametrize("subject", ["data", "step"])
def test_help_of_a_subject_names_the_experiment(subject, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark([subject, "--help"])
    assert end.value.code == 0
    assert f"usage: swin-lightning benchmark {subject} -c EXPERIMENT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: {data,step,inference}"),
        (["speed"], "invalid choice: 'speed'"),
        (["data"], "missing model.backbone"),
        (
            [
                "step",
                "-c",
                "base",
                "--model.backbone=swin_lightning.models.swin_micro_patch4_window4_32",
                "--model.num_classes=2",
            ],
            "missing data.class_path",
        ),
        (["data", "-c", "nothing.yaml"], "nothing.yaml"),
        (["data", "-c", DIGITS, "--images=0"], "--images 0 must be at least 1"),
        (["step", "-c", DIGITS, "--steps=0"], "--steps 0 must be at least 1"),
        (["data", "-c", DIGITS, "--data.imagesize=3"], "unknown option .*imagesize; did you mean .*image_size"),
        (["step", "-c", DIGITS, "--model.lr=fast"], "model.lr"),
    ],
)
def test_user_errors_are_one_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        benchmark(args)
    assert "\n" not in str(error.value)


# data


def test_data_prints_rates_of_every_stage_and_the_bottleneck(capsys):
    benchmark(["data", "-c", DIGITS, "--images=20", "--data.num_workers=1", "--data.batch_size=20"])
    header, *rows, sentence = capsys.readouterr().out.splitlines()
    assert header.split() == ["one", "loader", "process", "ms", "per", "image", "images/s"]
    names = ["read", "decode and crop", "augment", "convert to a tensor", "all stages", "loader, num_workers=1",
             "model, training, cpu, batch 8"]  # fmt: skip
    assert [row[:38].strip() for row in rows] == names
    assert all(float(row.split()[-1]) > 0 for row in rows)
    assert sentence.startswith("bottleneck: the ")


@pytest.mark.parametrize(
    ("loaded", "demand", "expected"),
    [
        (500.0, 1200.0, "bottleneck: the data pipeline, at 42% of the model's demand; it needs num_workers=4"),
        (1200.0, 400.0, "bottleneck: the model; the data pipeline delivers 3.0 times its demand"),
    ],
)
def test_bottleneck(loaded, demand, expected):
    assert throughput.bottleneck(loaded, demand, one_process=320.0) == expected


def test_stage_rates_add_up(digits, monkeypatch):
    data, _ = digits()
    seconds = {"read": 0.5, "decoded": 0.75, "augmented": 1.75, "tensor": 2.0}
    monkeypatch.setattr(throughput, "time_per_key", lambda tasks, keys: {name: seconds[name] for name in tasks})
    stages, whole = throughput.stage_rates(data, 3)
    assert stages == {"read": 2.0, "decode and crop": 4.0, "augment": 1.0, "convert to a tensor": 4.0}
    assert whole == 0.5


def test_time_per_key_runs_every_task_on_every_key():
    calls = []
    seconds = throughput.time_per_key({"a": calls.append, "b": lambda key: calls.append(-key)}, [1, 2])
    assert calls == [1, 2, -1, -2] * throughput.ROUNDS
    assert set(seconds) == {"a", "b"}


def test_stages_end_in_the_samples_of_training(digits, monkeypatch):
    data, _ = digits()
    outputs = {}

    def run_once(tasks, keys):
        outputs.update({name: [task(key) for key in keys] for name, task in tasks.items()})
        return dict.fromkeys(tasks, 1.0)

    monkeypatch.setattr(throughput, "time_per_key", run_once)
    throughput.stage_rates(data, 3)
    data.batch_size = 3
    data.num_workers = 0
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(torch.stack([sample["image"] for sample in outputs["tensor"]]), batch["image"])
    assert np.array_equal(np.stack(outputs["augmented"]).transpose(0, 3, 1, 2), batch["image"].numpy())


def test_data_that_cannot_be_indexed_are_user_errors(monkeypatch, digits):
    data, model = digits()
    monkeypatch.setattr(throughput, "instantiate", lambda config: (LightningDataModule(), model))
    with pytest.raises(ValueError, match="LightningDataModule is not an ImageDataModule"):
        throughput.report_throughput(load(["-c", DIGITS]), 4)
    data.sources["train"] = iter([])
    monkeypatch.setattr(throughput, "instantiate", lambda config: (data, model))
    with pytest.raises(ValueError, match="a stream cannot be read by index"):
        throughput.report_throughput(load(["-c", DIGITS]), 4)


def test_sheet_shows_evaluation_epochs_and_mixup(tmp_path, digits):
    data, _ = digits("--data.mixup=0.8")
    path = tmp_path / "sheets" / "augmentations.png"
    save_augmentation_sheet(data, path, samples=3, epochs=2)
    with Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (3 * 68 + 14, 5 * 68, 3)  # evaluation, two epochs, two mixed batches
    image = np.asarray(data.sources["train"][0][0])
    tiles = [data.eval_transform()(image, (0, 0, 0)), data.train_transform()(image, (data.seed, 0, 0))]
    for x, tile in zip((0, 68), tiles, strict=True):
        resized = np.asarray(Image.fromarray(tile).resize((64, 64), Image.Resampling.BICUBIC))
        assert np.array_equal(sheet[14:78, x : x + 64], resized)


def test_show_writes_the_sheet_and_measures_nothing(capsys):
    benchmark(["data", "-c", DIGITS, "--show=sheet.png"])
    assert capsys.readouterr().out == "wrote sheet.png\n"
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (7 * 68, 8 * 68 + 14)


# step


@pytest.mark.slow
def test_step_prints_time_and_memory(capsys):
    benchmark(["step", "-c", DIGITS, "--steps=2", "--trainer.accelerator=cpu", "--trainer.accumulate_grad_batches=4"])
    title, device, header, training, evaluation, note = capsys.readouterr().out.splitlines()
    assert title == "digits_swin_micro: SwinClassifier, AdamW, precision 32-true"
    assert device.startswith("cpu")
    assert header.split() == ["images", "ms", "images/s", "peak", "memory"]
    for row, name, images in ((training, "training step", 32), (evaluation, "evaluation step", 8)):
        assert row[:16].strip() == name
        found, ms, rate, megabytes, unit = row[16:].split()
        assert int(found) == images and unit == "MB" and float(megabytes) > 50
        assert float(rate) == pytest.approx(1000 * images / float(ms), rel=0.01)
    assert note == "peak memory: resident, of the whole process"


class TwoOptimizers(LightningModule):
    """Manual optimization and no validation."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.a.parameters(), lr=1.0), torch.optim.Adam(self.b.parameters())

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        for network, optimizer in zip((self.a, self.b), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(network(batch).sum())
            optimizer.step()


class Tensors(LightningDataModule):
    """Batches of three rows: 0, 1, 2, ..."""

    def __init__(self):
        super().__init__()
        self.loaded = 0

    def train_dataloader(self):
        return DataLoader(torch.arange(12.0).view(6, 2), batch_size=3)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch + 100


def test_step_measures_any_lightning_module(monkeypatch, capsys):
    config = load(["-c", DIGITS, "--trainer.accelerator=cpu"])
    config.experiment = "own"
    model = TwoOptimizers()
    before = model.a.weight.detach().clone()
    monkeypatch.setattr(step, "instantiate", lambda config: (Tensors(), model))
    step.report_steps(config, steps=3)
    title, _, _, *rows, _ = capsys.readouterr().out.splitlines()
    assert title == "own: TwoOptimizers, SGD, Adam, precision 32-true"
    assert [row[:24].split() for row in rows] == [["training", "step", "3"]]
    assert len(model.seen) == step.WARMUP + 3 + 1
    first = torch.arange(6.0).view(3, 2) + 100  # the first batch, every time, after the data module's own hook
    assert all(torch.equal(batch, first) for batch in model.seen)
    torch.testing.assert_close(model.a.weight.detach(), before - len(model.seen) * first.sum(0))


def test_step_time_is_the_median_after_warmup():
    timer = step.StepTimer(accumulated=1)
    timer.starts = [0.0, 50.0, 90.0, 91.0, 93.0, 103.0]
    assert timer.seconds() == 2.0


def test_batch_is_shared_by_the_devices(capsys):
    benchmark(["step", "-c", DIGITS, "--steps=1", "--trainer.accelerator=cpu", "--trainer.devices=2"])
    _, device, _, training, *_ = capsys.readouterr().out.splitlines()
    assert device.endswith(", one of 2 devices") and training.split()[2] == "16"


def test_peak_memory_includes_freed_memory_until_it_is_reset():
    before = memory.resident()
    block = torch.ones(50_000_000)  # 200 MB
    assert memory.resident() - before > 190e6
    del block
    assert memory.peak_memory(CPU) - before > 190e6
    memory.reset_peak_memory(CPU)
    assert memory.peak_memory(CPU) - before < 100e6
