"""Hostile files at the entrances: none runs code, none is loaded in part, and the error is the user's, of one line."""

import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from swin_lightning import SwinClassifier
from swin_lightning.cli import main
from swin_lightning.data import ImageFolder
from swin_lightning.data.decoding import LazyImage
from swin_lightning.errors import UserError
from swin_lightning.explore.evaluation import load_run
from swin_lightning.inference import Predictor
from swin_lightning.models import SwinTransformer
from swin_lightning.models.weights import load_weights
from tests.support import hostile
from tests.support.checkpoints import BACKBONE, hyper_parameters, write_checkpoint
from tests.support.cli import DIGITS

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
MEMORY, SECONDS = 2**30, 5


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a module and a YAML file that run code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text(f"{hostile.TOUCH}; Module = function = print")
    Path("evil.yaml").write_text("class_path: evil.Module")
    torch.save({"x": hostile.Code()}, "evil.pth")
    yield tmp_path
    assert "evil" not in sys.modules


@contextmanager
def refused(path):
    """The block raises a UserError, within the limits of memory and time, and runs no code."""

    def interrupt(*_):
        raise TimeoutError

    limit = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, limit[1]))
        signal.alarm(4 * SECONDS)  # wall time, on a machine that does other things as well
        with pytest.raises(UserError) as error:
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    assert not Path("ran").exists()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert "out of memory" not in str(error.value)


def test_there_are_sixty_files():
    kinds = (hostile.CHECKPOINTS, hostile.WEIGHTS, hostile.IMAGES, hostile.TARS, hostile.RUNS)
    assert sum(map(len, kinds)) >= 60


SLOW = ("compressed zeros",)  # to write


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in hostile.CHECKPOINTS]
)
def test_checkpoint_in_python(name, folder):
    path = folder / "a.ckpt"
    hostile.CHECKPOINTS[name](path)
    with refused(path):
        SwinClassifier.load_from_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.CHECKPOINTS)
@pytest.mark.parametrize("entrance", ["test", "fit", "validate", "export", "predict", "Predictor"])
def test_checkpoint_on_the_command_line(name, entrance, folder):
    path = folder / "a.ckpt"
    hostile.CHECKPOINTS[name](path)
    options = ["-c", DIGITS, "--ckpt_path", str(path), "--trainer.accelerator=cpu", "--trainer.logger=false"]
    with refused(path):
        if entrance == "export":
            main(["export", str(path), "--output", "w.safetensors"])
        elif entrance == "Predictor":
            Predictor(path)
        else:
            main([entrance, *options, *(["--data.predict_path=."] if entrance == "predict" else [])])
    assert not Path("w.safetensors").exists()


PREPROCESSING = {"image_size": 32, "crop": "center", "crop_ratio": 0.9, "mean": (0, 0, 0), "std": (1, 1, 1)}
PREPROCESSING["interpolation"] = "bicubic"


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 10**6},
        {"image_size": "32"},
        {"crop_ratio": 1e-9},
        {"crop_ratio": float("nan")},
        {"crop": "$(touch ran)"},
        {"std": (0, 0, 0)},
        {"mean": (float("nan"),) * 3},
        {"mean": "abc"},
        {"interpolation": 7},
    ],
)
def test_preprocessing_of_a_checkpoint(change, folder):
    path = write_checkpoint(folder / "a.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "Digits": {"preprocessing": PREPROCESSING}}, path)
    Predictor(path, device="cpu")
    torch.save({**content, "Digits": {"preprocessing": {**PREPROCESSING, **change}}}, path)
    with refused(path):
        Predictor(path, device="cpu")


@pytest.mark.parametrize("name", hostile.WEIGHTS)
def test_weights(name, folder):
    hostile.WEIGHTS[name](folder / name)
    model = SwinClassifier(SwinTransformer(**BACKBONE), 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with refused(name):
        load_weights(model, name)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", hostile.IMAGES)
def test_image(name, folder):
    hostile.IMAGES[name](folder / name)
    for data in (folder / name, (folder / name).read_bytes()):
        with refused(name):
            LazyImage(data, name).size()
        with refused(name):
            LazyImage(data, name).pixels()


@pytest.mark.parametrize("name", hostile.TARS)
def test_tar_shard(name, folder):
    (folder / "data").mkdir()
    hostile.TARS[name](folder / "data" / "train-0.tar")
    with refused(name):
        data = ImageFolder("data", num_workers=0, batch_size=1, image_size=32)
        data.setup("fit")
        next(iter(data.train_dataloader()))


def test_member_outside_of_the_archive_is_read_in_place(folder):
    (folder / "data").mkdir()
    for split in ("train", "val"):
        hostile.tar([("../../cat/a.png", hostile.PNG), ("/dog/b.png", hostile.PNG)])(folder / "data" / f"{split}.tar")
    data = ImageFolder("data", num_workers=0, batch_size=2, image_size=32)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 32, 32)
    assert not list(folder.parent.glob("cat")) and not Path("/dog").exists()


def write_run(folder, name):
    run = folder / "runs" / "x" / "1-a"
    write_checkpoint(run / "checkpoints" / "best.ckpt")
    arguments = hyper_parameters()
    arguments.pop("_instantiator")
    model = {"class_path": arguments.pop("_class_path"), "init_args": {"backbone": arguments["backbone"]}}
    data = {"class_path": "swin_lightning.data.Digits", "init_args": {"num_workers": 0}}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    file, content = hostile.RUNS[name]
    (run / file).write_text(content)
    return run


@pytest.mark.parametrize("name", hostile.RUNS)
def test_run_folder(name, folder):
    run = write_run(folder, name)
    with refused(name):
        load_run(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.RUNS)
def test_report_of_a_run_folder(name, folder):
    run = write_run(folder, name)
    with refused(name):
        main(["report", str(run)])


@pytest.mark.parametrize("name", ["metrics of zeros", "metrics with a huge cell"])
def test_metrics_that_are_no_table(name, folder):
    run = write_run(folder, "list")
    shutil.rmtree(run / "checkpoints")
    content = b"\0" * 1000 if "zeros" in name else b'step,val/loss\n0,"' + b"1" * 10**6 + b"\n"
    (run / "metrics.csv").write_bytes(content)
    with refused(name):
        main(["report", str(run)])
