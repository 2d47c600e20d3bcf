"""`swin-lightning benchmark data`: figures of every step, the limit, and the sheet of augmented images."""

import numpy as np
import pytest
from PIL import Image

from swin_lightning.benchmark import data as benchmark
from swin_lightning.benchmark.usual import OPERATIONS, UsualDataset
from swin_lightning.cli import main
from swin_lightning.data import rand_augment as operations
from tests.data.test_sampling import photographs  # noqa: F401
from tests.data.test_transforms import noise
from tests.support.cli import DIGITS


def test_the_figures_of_every_step_and_the_limit(capsys):
    main(["benchmark", "data", "-c", DIGITS, "--images", "40", "--data.num_workers=1", "--data.batch_size=20"])
    lines = capsys.readouterr().out.splitlines()
    names = (
        "read",
        "decode and crop",
        "augment",
        "to a tensor",
        "all of it",
        "loader, 1",
        "model, training, cpu, batch 8",
    )
    for name, line in zip(names, lines[1:], strict=False):
        assert line.startswith(name)
        assert float(line.split()[-1]) > 0
    assert "limits the run" in lines[-1]


@pytest.mark.parametrize(
    ("loaded", "taken", "expected"),
    [
        (500.0, 1200.0, "the data limits the run: 0.42 of the model's demand, which 4 processes meet"),
        (1200.0, 400.0, "the model limits the run: the data could give 3.0 times as much"),
    ],
)
def test_the_verdict(loaded, taken, expected):
    assert benchmark.verdict(loaded, taken, one=320.0) == expected


def test_the_sheet_shows_evaluation_epochs_and_mixing(tmp_path, photographs):  # noqa: F811
    data, _ = benchmark.build([DIGITS], ["--data.mixup=0.8"])
    data.setup("fit")
    benchmark.show(data, tmp_path / "sheets" / "augmentations.png", samples=3, epochs=2)
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "augmentations.png"))
    assert sheet.shape == (3 * 68 + 14, 5 * 68, 3)  # evaluation, two epochs, two mixed batches
    first = data.eval_transform()(np.asarray(data.sources["train"][0][0]), (0, 0, 0))
    tile = np.asarray(Image.fromarray(first).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(sheet[14:78, :64], tile)


def test_the_usual_pipeline_gives_comparable_images(photographs, capsys):  # noqa: F811
    data, _ = benchmark.build(
        [DIGITS], ["--data=swin_lightning.data.ImageFolder", f"--data.path={photographs}", "--data.crop=random_resized"]
    )
    data.sources["train"] = data.load("train")
    ours, usual, ratios = benchmark.beside_the_usual(data, 25)
    assert min(ours, usual, *ratios) > 0
    item = UsualDataset(data)[0, 3]
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype.is_floating_point


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_the_usual_operations_are_ours(name):
    image = Image.fromarray(noise()).resize((56, 40))
    ours = operations.RAND_AUGMENT_OPS[name](np.asarray(image), 1, 0.7, (1, 2, 3)).astype(int)
    difference = np.abs(ours - np.asarray(OPERATIONS[name](image, 1, 0.7, (1, 2, 3))))
    assert difference.mean() < (6 if name in ("Rotate", "ShearX", "ShearY") else 0.01)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-c", "nothing.yaml"], "-c nothing.yaml: there is no such file"),
        (["-c", DIGITS, "--images=0"], "--images 0 must be at least 1"),
        (["-c", DIGITS, "--data.imagesize=3"], "unknown option"),
        (["-c", DIGITS, "--usual"], "data.crop random_resized, from image files"),
    ],
)
def test_a_mistake_is_one_line(args, words):
    with pytest.raises(Exception, match=words) as error:
        main(["benchmark", "data", *args])
    assert "\n" not in str(error.value)
