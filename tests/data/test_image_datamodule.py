"""The base data module: loaders, normalisation, augmentation on the device, batch sizes, unreadable images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swin_lightning.data import Digits, ImageDataModule, ImageFolder
from swin_lightning.data.readers import ArrayReader
from swin_lightning.errors import UserError
from swin_lightning.prediction_callbacks import PredictionWriter
from swin_lightning.prediction_file import PredictionFile
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.images import PLAIN, Recorder, write_image

AUGMENTED = {"crop": "random_resized", "rotate": 10.0, "rand_augment": "rand-m9-mstd0.5-inc1"}


class Eight(ImageDataModule):
    """Eight images for training and three for validation."""

    class_names = ["even", "odd"]

    def load(self, split):
        n = 8 if split == "train" else 3
        images = np.random.default_rng(0).integers(256, size=(n, 4, 4, 3), dtype=np.uint8)
        return ArrayReader(images, np.arange(n) % 2)


def eight(**options):
    return Eight(**{"image_size": 4, "batch_size": 4, "num_workers": 0} | options)


# loaders


def first_batch(num_workers, epoch=0):
    data = eight(num_workers=num_workers, **AUGMENTED)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return next(iter(loader))


def test_pixels_do_not_depend_on_the_number_of_workers():
    alone, parallel = first_batch(0), first_batch(2)
    assert all(torch.equal(alone[key], parallel[key]) for key in ("image", "target", "index"))
    assert alone["image"].dtype == torch.uint8
    assert alone["image"].shape == (4, 3, 4, 4)


def test_persistent_workers_use_the_current_epoch():
    data = eight(num_workers=1, **AUGMENTED)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batches.append(next(iter(loader))["image"])
        assert torch.equal(batches[-1], first_batch(0, epoch)["image"])
    assert loader.persistent_workers and not torch.equal(*batches)


def test_persistent_workers_yield_the_same_validation_batches_in_every_epoch():
    loaders = []
    for workers in (0, 2):
        data = eight(num_workers=workers, batch_size=2)
        data.setup("validate")
        loaders.append(data.val_dataloader())
    expected = list(loaders[0])
    assert loaders[1].persistent_workers
    for _ in range(2):
        for batch, other in zip(loaders[1], expected, strict=True):
            assert torch.equal(batch["image"], other["image"])
            assert torch.equal(batch["index"], other["index"])


def test_evaluation_is_in_order_and_deterministic():
    data = Digits(num_workers=0, batch_size=64, eval_batch_size=50)
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert [len(batch["index"]) for batch in batches] == [50, 50, 50, 30]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(180))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batches, data.val_dataloader(), strict=True))


# normalisation and augmentation on the device


def test_normalize_and_denormalize_are_inverse():
    data = eight(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    images = data.normalize(pixels)
    assert images.dtype == torch.float32
    expected = (51 / 255 - 0.2) / 0.1, (51 / 255 - 0.4) / 0.2, (51 / 255 - 0.6) / 0.3
    assert images[0, :, 3, 3].tolist() == pytest.approx(expected, abs=1e-5)  # pixel 51
    assert torch.equal(data.denormalize(images), pixels)


def test_normalize_has_gradients_after_inference_mode():
    data, images = eight(mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.5)), torch.ones(1, 3, 2, 2)
    with torch.inference_mode():  # Lightning evaluates before the first training batch
        data.normalize(images)
    images.requires_grad_()
    data.normalize(images * images).sum().backward()
    torch.testing.assert_close(images.grad[0, :, 0, 0], 2 / 255 / torch.tensor([0.1, 0.2, 0.5]))


def test_model_gets_normalised_images_that_are_mixed_in_training_only(make_trainer):
    plain = {"crop": "none", "hflip": 0.0, "eval_crop": "squash"}
    seen = {}
    for mixup in (0.0, 1.0):
        model = SwinClassifier(Recorder(), 2)
        data = eight(mixup=mixup, **plain)
        make_trainer(num_sanity_val_steps=0).fit(model, data)
        seen[mixup] = torch.cat(model.backbone.inputs)
    order = np.random.default_rng((0, 0)).permutation(8)
    pixels = torch.from_numpy(data.sources["train"].images[order]).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[0.0][:8], data.normalize(pixels))
    assert not torch.allclose(seen[1.0][:8], seen[0.0][:8], atol=1e-3)
    validation = torch.from_numpy(data.sources["val"].images).permute(0, 3, 1, 2)
    for images in seen.values():
        torch.testing.assert_close(images[8:], data.normalize(validation))


class Hundred(Eight):
    def load(self, split):
        images = np.random.default_rng(0).integers(256, size=(100, 16, 16, 3), dtype=np.uint8)
        return ArrayReader(images, np.arange(100) % 2)


def training_batches(data, rank=0, world_size=1, accumulate=1, epoch=0):
    """What the model gets on one rank: lists of batches, one list per optimizer step."""
    current = SimpleNamespace(ready=0, processed=0)
    data.trainer = SimpleNamespace(
        training=True,
        state=SimpleNamespace(stage="train"),
        current_epoch=epoch,
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(
            restarting=False, epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current))
        ),
        precision_plugin=SimpleNamespace(convert_input=lambda images: images),
    )
    data.setup("fit")
    loader, steps = data.train_dataloader(), []
    loader.sampler.set_epoch(epoch)
    for current.ready, batch in enumerate(loader):
        if current.ready % accumulate == 0:
            steps.append([])
        steps[-1].append(data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0))
    return steps


MIXED = {"random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.7}
PARTS = [(1, 2), (1, 4), (2, 1), (3, 1), (2, 2)]  # ranks, accumulated batches


def samples(batch):
    """Index, pixels and target of each sample."""
    pixels = [image.numpy().tobytes() for image in batch["image"]]
    return list(zip(batch["index"].tolist(), pixels, map(str, batch["target"].tolist()), strict=True))


def epoch_samples(world_size, accumulate, epoch, **options):
    """The samples of every global batch, sorted by index."""
    ranks = []
    for rank in range(world_size):
        data = Hundred(**{"image_size": 16, "batch_size": 24, "num_workers": 0} | MIXED | AUGMENTED | options)
        ranks.append(training_batches(data, rank, world_size, accumulate, epoch))
    return [
        sorted(s for rank in ranks for batch in rank[step] for s in samples(batch)) for step in range(len(ranks[0]))
    ]


def test_ranks_and_accumulated_batches_give_the_same_pixels_and_targets():
    mixed = set()
    for epoch in (0, 1):
        whole = epoch_samples(1, 1, epoch)
        assert [len(step) for step in whole] == [24] * 4
        mixed |= {target.startswith("[") for step in whole for _, _, target in step}
        for world_size, accumulate in PARTS:
            assert epoch_samples(world_size, accumulate, epoch) == whole, (world_size, accumulate)
    assert mixed == {True, False}


def test_erasing_does_not_depend_on_odd_batches_but_mixing_does(caplog):
    whole = epoch_samples(1, 1, 0, batch_size=27, mixup=0.0, cutmix=0.0)
    assert epoch_samples(3, 3, 0, batch_size=27, mixup=0.0, cutmix=0.0) == whole
    assert "odd" not in caplog.text
    whole = epoch_samples(1, 1, 0, batch_size=27, mix_probability=1.0)
    assert "odd" not in caplog.text
    parts = epoch_samples(3, 1, 0, batch_size=27, mix_probability=1.0)
    unequal = [sum(a != b for a, b in zip(*steps, strict=True)) for steps in zip(whole, parts, strict=True)]
    assert unequal == [2, 2, 2]  # the middle images of two ranks; that of the third is in the middle of the whole batch
    assert caplog.text.count("data.batch_size 27 gives 9 images per device and forward pass, an odd number") == 1


def test_random_erasing_comes_before_mixing():
    data = Hundred(image_size=16, batch_size=4, num_workers=0, random_erasing=1.0, mixup=0.8)
    erased = [batch["image"] for (batch,) in training_batches(data)]
    data.random_erasing = 0.0
    kept = [batch["image"] for (batch,) in training_batches(data)]
    for images, others in zip(erased, kept, strict=True):
        changed = images.ne(others).any(1)
        assert changed.flatten(1).any(1).all() and not changed.all()
        assert torch.equal(changed, changed.flip(0))  # both images of a mixed pair show the boxes of both


# sizes and class names


@pytest.mark.parametrize("option", [{"image_size": 0}, {"batch_size": 0}, {"batch_size": -4}])
def test_sizes_below_one_are_an_error(option):
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"data.{name} {value}: expected an integer >= 1"):
        Digits(**option)


def test_batch_larger_than_the_training_set_is_an_error():
    data = eight(batch_size=9)
    data.setup("fit")
    with pytest.raises(UserError, match=r"data\.batch_size 9 is larger than the training set of 8 images"):
        data.train_dataloader()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_size_is_the_global_batch_size(make_trainer, accumulate):
    model = SwinClassifier(Recorder(), 2)
    trainer = make_trainer(accumulate_grad_batches=accumulate, limit_val_batches=0)
    trainer.fit(model, eight())
    assert [len(images) for images in model.backbone.inputs] == [4 // accumulate] * 2 * accumulate
    assert trainer.global_step == 2


def test_indivisible_global_batch_is_an_error(make_trainer):
    trainer = make_trainer(accumulate_grad_batches=3)
    with pytest.raises(UserError, match=r"data.batch_size 4 .* 1 devices x 3 accumulated.*multiple of 3"):
        trainer.fit(SwinClassifier(Recorder(), 2), eight())


def test_missing_class_names_are_an_error_of_num_classes():
    class Unnamed(ImageDataModule):
        pass

    class Broken(ImageDataModule):
        @property
        def class_names(self):
            return self.no_such_attribute

    with pytest.raises(UserError, match=r"data\.class_path: Unnamed does not set class_names"):
        Unnamed().num_classes  # noqa: B018
    with pytest.raises(RuntimeError, match=r"Broken\.class_names"):  # a bug keeps its traceback
        Broken().num_classes  # noqa: B018


# unreadable images


@pytest.fixture
def folder(tmp_path):
    """Training and validation images of two classes, four each; the last of each class is corrupt."""
    for split in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            for i in range(4):
                write_image(tmp_path / "set" / split / name / f"{i}.png", 200 * label + i)
            (tmp_path / "set" / split / name / "3.png").write_bytes(b"")
    return tmp_path / "set"


def data_of(folder, **options):
    return ImageFolder(str(folder), image_size=8, batch_size=4, **{"num_workers": 0} | PLAIN | options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_image_stops_the_run_with_its_path(folder, make_trainer, num_workers):
    with pytest.raises(ValueError, match=r"cannot read image .*3\.png"):
        make_trainer().fit(SwinClassifier(Recorder(), 2), data_of(folder, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_are_replaced_in_training_and_ignored_in_evaluation(folder, make_trainer, caplog, num_workers):
    seen = []

    class Watched(SwinClassifier):
        def training_step(self, batch, batch_idx):
            seen.extend(zip(batch["index"].tolist(), batch["target"].tolist(), strict=True))
            return super().training_step(batch, batch_idx)

    data = data_of(folder, num_workers=num_workers, on_bad_image="skip")
    model = Watched(Recorder(), 2)
    make_trainer(limit_val_batches=0).fit(model, data)
    # 3 and 7 are corrupt: 4 and 0 replace them, with their own labels
    assert sorted(seen) == sorted([(0, 0), (1, 0), (2, 0), (4, 1), (4, 1), (5, 1), (6, 1), (0, 0)])
    assert sorted(model.backbone.values()) == sorted([0, 1, 2, 200, 200, 201, 202, 0])
    assert caplog.text.count("skipped 2 unreadable images") == 1
    for name in ("dark", "light"):
        assert str(folder / "train" / name / "3.png") in caplog.text
    caplog.clear()

    (result,) = make_trainer().validate(model, data, verbose=False)
    logits = model(torch.tensor([0, 1, 2, 200, 201, 202]).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255)
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    assert result["val/acc"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert result["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), abs=1e-4)
    assert "skipped 2 unreadable images" in caplog.text


def test_predictions_leave_out_unreadable_images(folder, make_trainer, tmp_path):
    data = data_of(folder, on_bad_image="skip", predict_path=str(folder / "val"))
    trainer = make_trainer(callbacks=[PredictionWriter(PredictionFile(tmp_path / "out" / "predictions.csv"))])
    trainer.predict(SwinClassifier(Recorder(), 2), data, return_predictions=False)
    rows = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == sorted(str(path) for path in folder.glob("val/*/[012].png"))


def test_loader_before_setup_says_what_to_call():
    for split, stage in (("train", "fit"), ("val", "fit"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(ValueError, match=rf"the {split} split has not been read: call setup\('{stage}'\)"):
            getattr(Digits(num_workers=0), f"{split}_dataloader")()


def test_images_above_max_pixels_are_unreadable(tmp_path):
    write_image(tmp_path / "small.png", 7, size=(8, 8))
    write_image(tmp_path / "large.png", 7, size=(8, 9))
    data = Digits(num_workers=0, predict_path=str(tmp_path), max_pixels=64, on_bad_image="skip", batch_size=2)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["index"].tolist() == [-1, 1] and batch["bad_index"].tolist() == [0, -1]
