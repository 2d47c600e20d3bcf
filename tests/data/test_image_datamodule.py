"""Data sets, decoding, samplers and loaders."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from swin_lightning.data import CIFAR10, CIFAR100, Digits, ImageDataModule, ImageFolder, ImageNet
from swin_lightning.data.readers import ArrayImages
from swin_lightning.data.sampling import ImageDataset, ResumableSampler
from swin_lightning.data.transforms import eval_transform
from swin_lightning.tasks.classification import SwinClassifier

# samplers


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 12, 13])
def test_evaluation_sees_every_sample_once_and_marks_the_rest(size, world_size):
    ranks = [list(ResumableSampler(size, 4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(keys) for keys in ranks}) == 1  # collective operations need equal numbers of steps
    indices = [index for keys in ranks for _, index in keys]
    assert sorted(index for index in indices if index >= 0) == list(range(size))
    assert sum(index < 0 for index in indices) == -size % world_size


def test_a_marked_sample_has_no_label():
    source = ArrayImages(np.zeros((3, 4, 4, 3), np.uint8), np.array([5, 6, 7]))
    dataset = ImageDataset(source, eval_transform(4, "squash"))
    assert [dataset[0, index]["target"] for index in (0, 2, ~0, ~2)] == [5, 7, -1, -1]
    assert [dataset[0, index]["index"] for index in (0, 2, ~0, ~2)] == [0, 2, 0, 2]


def test_training_is_another_permutation_each_epoch_and_seed():
    orders = {}
    for seed in (0, 1):
        sampler = ResumableSampler(50, 10, seed, training=True)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert {key[0] for key in keys} == {epoch}
            orders[seed, epoch] = tuple(index for _, index in keys)
            assert list(sampler) == keys  # a function of seed and epoch
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize("size", [48, 53])
def test_a_global_batch_is_the_same_set_on_one_and_on_two_ranks(size):
    one = [index for _, index in ResumableSampler(size, 8, training=True)]
    two = [[index for _, index in ResumableSampler(size, 4, training=True, rank=r, world_size=2)] for r in (0, 1)]
    assert len(one) == size // 8 * 8  # the incomplete last batch is left out
    assert len(two[0]) == len(two[1]) == len(one) // 2
    for b in range(size // 8):
        assert {*two[0][4 * b : 4 * b + 4], *two[1][4 * b : 4 * b + 4]} == set(one[8 * b : 8 * b + 8])


@pytest.mark.parametrize("world_size", [1, 2])
def test_skip_leaves_out_the_first_batches_of_one_epoch(world_size):
    sampler = ResumableSampler(40, 4, training=True, rank=world_size - 1, world_size=world_size)
    whole = list(sampler)
    sampler.skip = 2
    assert list(sampler) == whole[8:]
    assert list(sampler) == whole


# loaders

AUGMENTED = {"crop": "random_resized", "rotate": 10.0, "rand_augment": "rand-m9-mstd0.5-inc1", "batch_size": 32}


def first_epoch_batch(num_workers, epoch=0, seed=0):
    data = Digits(num_workers=num_workers, seed=seed, **AUGMENTED)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return next(iter(loader))


def test_the_number_of_workers_changes_no_pixel():
    alone, parallel = first_epoch_batch(0), first_epoch_batch(2)
    assert all(torch.equal(alone[key], parallel[key]) for key in ("image", "target", "index"))
    assert alone["image"].dtype == torch.uint8
    assert alone["image"].shape == (32, 3, 32, 32)


def test_each_epoch_and_seed_augments_a_sample_anew_and_repeatably():
    data = Digits(num_workers=0, **AUGMENTED)
    data.setup("fit")
    pixels = {}
    for seed in (0, 1):
        dataset = ImageDataset(data.sources["train"], data.train_transform(), seed)
        for epoch in (0, 1):
            for index in (0, 1):
                pixels[seed, epoch, index] = dataset[epoch, index]["image"].numpy().tobytes()
                assert dataset[epoch, index]["image"].numpy().tobytes() == pixels[seed, epoch, index]
    assert len(set(pixels.values())) == len(pixels)


def test_persistent_workers_follow_the_epoch():
    data = Digits(num_workers=1, **AUGMENTED)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        assert torch.equal(next(iter(loader))["image"], first_epoch_batch(0, epoch)["image"])


def test_persistent_workers_validate_alike_in_every_epoch():
    loaders = []
    for workers in (0, 2):
        data = Digits(num_workers=workers, batch_size=64)
        data.setup("validate")
        loaders.append(data.val_dataloader())
    expected = list(loaders[0])
    assert loaders[1].persistent_workers
    for _ in range(2):
        for batch, other in zip(loaders[1], expected, strict=True):
            assert torch.equal(batch["image"], other["image"])
            assert torch.equal(batch["index"], other["index"])


def test_evaluation_is_in_order_and_without_randomness():
    data = Digits(num_workers=0, batch_size=64, eval_batch_size=50)
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert [len(batch["index"]) for batch in batches] == [50, 50, 50, 30]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(180))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batches, data.val_dataloader(), strict=True))


def test_pixels_have_gradients_after_an_evaluation():
    data, images = Digits(mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.5)), torch.ones(1, 3, 2, 2)
    with torch.inference_mode():  # as Lightning evaluates, before the first training batch
        data.normalize(images)
    images.requires_grad_()
    data.normalize(images * images).sum().backward()
    torch.testing.assert_close(images.grad[0, :, 0, 0], 2 / 255 / torch.tensor([0.1, 0.2, 0.5]))


def test_normalize_and_denormalize_are_inverse():
    data = Digits(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    images = data.normalize(pixels)
    assert images.dtype == torch.float32
    expected = (51 / 255 - 0.2) / 0.1, (51 / 255 - 0.4) / 0.2, (51 / 255 - 0.6) / 0.3
    assert images[0, :, 3, 3].tolist() == pytest.approx(expected, abs=1e-5)  # pixel 51
    assert torch.equal(data.denormalize(images), pixels)


class Recorder(nn.Module):
    """Keeps what it is given."""

    num_features = 1

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.scale * x.mean((1, 2, 3))[:, None]


class Eight(ImageDataModule):
    """Eight images to train and three to validate."""

    class_names = ["even", "odd"]

    def load(self, split):
        n = 8 if split == "train" else 3
        images = np.random.default_rng(0).integers(256, size=(n, 4, 4, 3), dtype=np.uint8)
        return ArrayImages(images, np.arange(n) % 2)


def test_the_model_gets_normalised_images_and_mixes_in_training_only(make_trainer):
    plain = {"image_size": 4, "batch_size": 4, "num_workers": 0, "crop": "none", "hflip": 0.0, "eval_crop": "squash"}
    seen = {}
    for mixup in (0.0, 1.0):
        model = SwinClassifier(Recorder(), 2)
        data = Eight(mixup=mixup, **plain)
        make_trainer(num_sanity_val_steps=0).fit(model, data)
        seen[mixup] = torch.cat(model.backbone.seen)
    order = np.random.default_rng((0, 0)).permutation(8)
    pixels = torch.from_numpy(data.sources["train"].images[order]).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[0.0][:8], data.normalize(pixels))
    assert not torch.allclose(seen[1.0][:8], seen[0.0][:8], atol=1e-3)
    validation = torch.from_numpy(data.sources["val"].images).permute(0, 3, 1, 2)
    for images in seen.values():
        torch.testing.assert_close(images[8:], data.normalize(validation))


@pytest.mark.parametrize("option", [{"image_size": 0}, {"batch_size": 0}, {"batch_size": -4}])
def test_sizes_below_one_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"data.{name} {value} must be at least 1"):
        Digits(**option)


def test_a_batch_larger_than_the_training_set_is_refused():
    data = Digits(num_workers=0, batch_size=1258)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"data\.batch_size 1258 is larger than the training set of 1257"):
        data.train_dataloader()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_size_is_the_global_batch(make_trainer, accumulate):
    model = SwinClassifier(Recorder(), 2)
    trainer = make_trainer(accumulate_grad_batches=accumulate, limit_val_batches=0)
    trainer.fit(model, Eight(image_size=4, batch_size=4, num_workers=0))
    assert [len(images) for images in model.backbone.seen] == [4 // accumulate] * 2 * accumulate
    assert trainer.global_step == 2


def test_a_global_batch_that_cannot_be_shared_is_refused(make_trainer):
    trainer = make_trainer(accumulate_grad_batches=3)
    with pytest.raises(ValueError, match=r"data.batch_size 4 .* 1 devices x 3 accumulated.*multiple of 3"):
        trainer.fit(SwinClassifier(Recorder(), 2), Eight(image_size=4, batch_size=4, num_workers=0))


# digits


def test_digits_have_disjoint_splits_of_the_promised_sizes():
    data = Digits(image_size=8)
    data.setup("fit")
    data.setup("test")
    sources = [data.sources[split] for split in ("train", "val", "test")]
    assert [len(source) for source in sources] == [1257, 180, 360]
    # the scans are all different, so that equal pixels would be the same sample
    assert len({image.tobytes() for source in sources for image in source.images}) == 1797
    assert data.num_classes == 10
    assert np.bincount(np.concatenate([source.labels for source in sources])).tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]


def test_digits_mean_and_std_are_those_of_the_training_set():
    data = Digits()
    data.setup("fit")
    pixels = data.sources["train"].images / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=0.01)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)), abs=0.01)


# image folders


def write_image(path, value=0, size=(9, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes; the red of an image tells its class and number."""
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(root / split / name / f"{i}.png", 100 * label + i)
    return root


def test_image_folder_labels_and_names(folder):
    data = ImageFolder(str(folder), image_size=4, num_workers=0)
    assert data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    data.setup("fit")
    source = data.sources["train"]
    assert [(np.asarray(image)[0, 0, 0], label) for image, label in (source[i] for i in range(6))] == [
        *[(0, 0), (1, 0), (2, 0)],
        *[(100, 1), (101, 1), (102, 1)],
    ]
    assert np.asarray(source[0][0]).shape == (6, 9, 3)
    assert source.name(5) == str(folder / "train" / "dog" / "2.png")
    assert len(data.sources["val"]) == 2


def test_testing_takes_the_test_split_where_there_is_one(folder):
    assert len(ImageFolder(str(folder)).load("test")) == 2
    for i in range(4):
        write_image(folder / "test" / "dog" / f"{i}.png")
    test = ImageFolder(str(folder)).load("test")
    assert list(test.labels) == [1] * 4


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"data.path 'missing/pets/of/all': there is no such folder"):
        ImageFolder("missing/pets/of/all").prepare_data()


def test_a_split_that_is_not_there_is_named(folder):
    (folder / "val").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=f"there is no folder {folder / 'val'}"):
        ImageFolder(str(folder)).load("val")


def test_a_split_without_class_folders_is_named(tmp_path):
    (tmp_path / "flat" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{tmp_path / 'flat' / 'train'} holds no class folders"):
        ImageFolder(str(tmp_path / "flat")).load("train")


def test_an_empty_class_folder_is_named(folder):
    (folder / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match=f"class folder {folder / 'train' / 'emu'} holds no image"):
        ImageFolder(str(folder)).load("train")


def test_an_unknown_class_is_named(folder):
    write_image(folder / "val" / "emu" / "0.png")
    with pytest.raises(ValueError, match=f"class folder {folder / 'val' / 'emu'} is not among the 2 classes"):
        ImageFolder(str(folder)).load("val")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"no image"])
def test_an_unreadable_image_is_named(folder, damage):
    path = folder / "train" / "dog" / "1.png"
    Image.effect_noise((50, 50), 50).convert("RGB").save(path)
    path.write_bytes(damage(path.read_bytes()))
    source = ImageFolder(str(folder)).load("train")
    with pytest.raises(ValueError, match=f"cannot read the image {path}"):
        np.asarray(source[4][0])


def test_predict_takes_a_folder_or_an_image_and_has_no_labels(folder):
    for path, count in ((folder, 8), (folder / "val", 2), (folder / "val" / "cat" / "0.png", 1)):
        data = ImageFolder(str(folder), image_size=4, num_workers=0, predict_path=str(path))
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        assert batch["target"].tolist() == [-1] * count
    for path in (None, str(folder / "nothing")):
        with pytest.raises(ValueError, match=r"data\.predict_path .*there is no such image or folder"):
            ImageFolder(str(folder), predict_path=path).setup("predict")


def test_imagenet_keeps_the_order_of_the_challenge(tmp_path):
    write_image(tmp_path / "train" / "n02084071" / "0.png")  # a dog, but no class of the challenge
    data = ImageNet(str(tmp_path))
    assert (data.num_classes, len(set(data.folder_names))) == (1000, 1000)
    assert data.folder_names == sorted(data.folder_names)
    assert (data.folder_names[0], data.folder_names[999]) == ("n01440764", "n15075141")
    with pytest.raises(ValueError, match="n02084071 is not among the 1000 classes"):
        data.load("train")
    (tmp_path / "train" / "n02084071").rename(tmp_path / "train" / "n15075141")
    assert list(data.load("train").labels) == [999]


# Hugging Face's layout


@pytest.fixture
def write_hub(tmp_path, monkeypatch):
    """Write a data set as parquet files: red of image i is i."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(column, label, names, **splits):
        features = datasets.Features({column: datasets.Image(), label: datasets.ClassLabel(names=names)})
        for split, labels in splits.items():
            images = []
            for i in range(len(labels)):
                file = io.BytesIO()
                Image.new("RGB", (32, 32), (i, 0, 0)).save(file, "PNG")
                images.append({"bytes": file.getvalue(), "path": None})
            table = datasets.Dataset.from_dict({column: images, label: labels}, features=features)
            (tmp_path / "hub").mkdir(exist_ok=True)
            table.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
        return str(tmp_path / "hub")

    return write


def test_cifar10_from_parquet_files(write_hub):
    labels = [i % 10 for i in range(20)]
    path = write_hub("img", "label", CIFAR10.class_names, train=labels, test=labels[:7])
    data = CIFAR10(path, val_size=6)
    train, val, test = (data.load(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (14, 6, 7)
    red = [[int(source[i][0][0, 0, 0]) for i in range(len(source))] for source in (train, val, test)]
    assert sorted(red[0] + red[1]) == list(range(20))  # held out of the training images, none twice
    assert red[2] == list(range(7))
    for source, values in zip((train, val, test), red, strict=True):
        assert source.images.shape[1:] == (32, 32, 3)
        assert source.labels.tolist() == [value % 10 for value in values]
    again = CIFAR10(path, val_size=6, seed=1).load("val")
    assert [int(image[0, 0, 0]) for image in again.images] == red[1]  # the same for every seed


def test_cifar10_without_held_out_images_validates_on_the_test_set(write_hub):
    path = write_hub("img", "label", CIFAR10.class_names, train=[0, 1, 2], test=[3, 4])
    data = CIFAR10(path, val_size=0)
    assert [data.load(split).labels.tolist() for split in ("train", "val", "test")] == [[0, 1, 2], [3, 4], [3, 4]]


def test_cifar100_reads_the_fine_labels_and_cifar10_refuses_them(write_hub):
    assert len(set(CIFAR100.class_names)) == 100
    path = write_hub("img", "fine_label", CIFAR100.class_names, train=[99, 0], test=[50])
    assert CIFAR100(path, val_size=0).load("train").labels.tolist() == [99, 0]
    with pytest.raises(ValueError, match=f"{path}.* has 100 classes, CIFAR10 10"):
        CIFAR10(path, val_size=0).load("train")


def test_image_folder_from_parquet_files(write_hub):
    path = write_hub("image", "label", ["cat", "dog"], train=[1, 0, 1], validation=[0])
    data = ImageFolder(path)
    data.prepare_data()
    assert data.class_names == ["cat", "dog"]
    train = data.load("train")
    reds = [(int(np.asarray(image)[0, 0, 0]), label) for image, label in (train[i] for i in range(3))]
    assert reds == [(0, 1), (1, 0), (2, 1)]
    assert train.name(1) == f"{path}[1]"
    assert len(data.load("val")) == len(data.load("test")) == 1
