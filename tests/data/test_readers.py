"""Tar shards and streams."""

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from swin_lightning.data import ImageFolder, ImageNet
from swin_lightning.data.tar_shards import TarImages
from swin_lightning.data.transforms import train_transform
from swin_lightning.tasks.classification import SwinClassifier
from tests.data.test_corrupt_images import Net
from tests.support.file_server import Server

OPTIONS = {"image_size": 8, "batch_size": 4, "mean": (0, 0, 0), "std": (1, 1, 1)}


def picture(value):
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            add(tar, name, content)


def write_shards(root, split="train", shards=2, each=5, labels="cls", start=0):
    """Image i is i everywhere and of class i % 2; two files an image, or one in the folder of its class."""
    root.mkdir(exist_ok=True)
    for s in range(shards):
        with tarfile.open(root / f"{split}-{s:06d}.tar", "w") as tar:
            for i in range(start + s * each, start + (s + 1) * each):
                if labels == "cls":
                    add(tar, f"{i:05d}.png", picture(i))
                    add(tar, f"{i:05d}.cls", str(i % 2).encode())
                else:
                    add(tar, f"{('cat', 'dog')[i % 2]}/{i:05d}.png", picture(i))
    return root


@pytest.mark.parametrize("labels", ["cls", "folders"])
def test_tar_shards_are_read_in_place(tmp_path, labels):
    root = write_shards(tmp_path / "set", labels=labels)
    write_shards(root, "val", shards=1, each=3, labels=labels)
    if labels == "cls":
        (root / "classes.txt").write_text("cat\ndog\n")
    data = ImageFolder(str(root), num_workers=0, **OPTIONS)
    data.prepare_data()
    assert data.class_names == ["cat", "dog"]
    data.setup("fit")
    source = data.sources["train"]
    assert [(int(np.asarray(image)[3, 4, 0]), label) for image, label in (source[i] for i in range(10))] == [
        (i, i % 2) for i in range(10)
    ]
    prefix = "" if labels == "cls" else "dog/"
    assert source.name(7) == f"{root}/train-000001.tar:{prefix}00007.png"
    assert (len(source), len(data.sources["val"]), len(data.load("test"))) == (10, 3, 3)
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [4, 4]


def test_numbers_without_names_are_their_own_names(tmp_path):
    data = ImageFolder(str(write_shards(tmp_path / "set")), **OPTIONS)
    assert data.class_names == ["0", "1"]


def test_imagenet_in_shards_takes_numbers_and_wnids(tmp_path):
    root = write_shards(tmp_path / "set", each=2, shards=1)
    assert ImageNet(str(root)).load("train").labels == [0, 1]
    write_tar(root / "train-000001.tar", {"n15075141/x.png": picture(3)})
    assert ImageNet(str(root)).load("train").labels == [0, 1, 999]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b"no tar at all" * 100), "cannot read the shard .*bad.tar: "),
        (lambda path: tarfile.open(path, "w:gz").close(), "must be an uncompressed tar"),
        (lambda path: write_tar(path, {"0.png": picture(0)}), "0.png has neither a .*cls"),
        (
            lambda path: write_tar(path, {"0.png": picture(0), "0.cls": b"cat"}),
            "cannot read the shard .*invalid literal",
        ),
    ],
)
def test_a_shard_that_is_none_is_named(tmp_path, write, words):
    write(tmp_path / "bad.tar")
    with pytest.raises(ValueError, match=words):
        TarImages([tmp_path / "bad.tar"])


def test_a_class_beyond_the_names_is_named(tmp_path):
    images = TarImages([write_shards(tmp_path / "set", shards=1) / "train-000000.tar"])
    with pytest.raises(ValueError, match=r"class 1 of 00001.png is not among the 1 classes"):
        images.name_classes(["only"])


# streams


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Four files of eight training images, and seven to validate: image i is i everywhere, of class i % 2."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)  # 5 s at the end of every pass
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    (tmp_path / "hub").mkdir()
    for split, number, values in [
        *(("train", s, range(8 * s, 8 * s + 8)) for s in range(4)),
        ("val", 0, range(100, 107)),
    ]:
        rows = {"image": [{"bytes": picture(i), "path": None} for i in values], "label": [i % 2 for i in values]}
        name = f"{'validation' if split == 'val' else split}-{number:05d}-of-00004.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / name)
    return tmp_path / "hub"


def stream(path, num_workers=0, **options):
    data = ImageFolder(str(path), streaming=True, stream_size=32, num_workers=num_workers, **OPTIONS | options)
    data.setup("fit")
    return data


def values(batch):
    return batch["image"][:, 0, 4, 4].tolist()


def test_a_stream_gives_every_image_once_in_an_order_of_its_epoch(parquet):
    data = stream(parquet)
    assert data.class_names == ["even", "odd"]
    loader = data.train_dataloader()
    assert len(loader) == 8
    orders = []
    for epoch in (0, 1, 0):
        loader.epoch = lambda epoch=epoch: epoch
        batches = list(loader)
        orders.append([value for batch in batches for value in values(batch)])
        assert sorted(orders[-1]) == list(range(32))
        assert [v % 2 for v in orders[-1]] == [t for batch in batches for t in batch["target"].tolist()]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_stopped(parquet, num_workers):
    loader = stream(parquet, num_workers).train_dataloader()
    whole = [values(batch) for batch in loader]
    assert sorted(value for batch in whole for value in batch) == list(range(32))
    for skip in (1, 2, 5, 7):
        loader.skip = skip
        assert [values(batch) for batch in loader] == whole[skip:], skip


def test_the_augmentation_of_a_streamed_image_depends_on_its_bytes_alone(parquet, tmp_path):
    import zlib

    transform = train_transform(8, fill=(0, 0, 0), rand_augment="rand-m9-mstd0.5-inc1")
    for batch in stream(parquet, rand_augment="rand-m9-mstd0.5-inc1").train_dataloader():
        for pixels, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            (i,) = [i for i in range(32) if zlib.crc32(picture(i)) == index]
            assert np.array_equal(pixels.permute(1, 2, 0), transform(np.full((10, 12, 3), i, np.uint8), (0, 0, index)))


def test_two_ranks_share_a_stream_and_validate_every_image_once(parquet):
    from swin_lightning.data.streaming import StreamedImages

    data = stream(parquet)
    shares = []
    for rank in (0, 1):
        items = StreamedImages(data.sources["train"], data.train_transform(), 0, True, rank, 2)
        rows = iter(items)
        shares.append([int(next(rows)["image"][0, 4, 4]) for _ in range(16)])
    assert sorted(shares[0] + shares[1]) == list(range(32))
    seen = [list(StreamedImages(data.sources["val"], data.eval_transform(), 0, False, rank, 2)) for rank in (0, 1)]
    assert [len(rank) for rank in seen] == [4, 4]
    counted = [int(item["image"][0, 4, 4]) for rank in seen for item in rank if item["target"] >= 0]
    assert sorted(counted) == list(range(100, 107))


def test_tar_shards_stream_as_well(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "set", shards=2, each=8)

    class Two(ImageFolder):
        class_names = ["even", "odd"]

    data = Two(f"file://{root}", streaming=True, stream_size=16, num_workers=0, **OPTIONS)
    data.sources["train"] = data.load("train")
    batches = list(data.train_dataloader())
    assert sorted(value for batch in batches for value in values(batch)) == list(range(16))
    assert all(batch["target"].tolist() == [value % 2 for value in values(batch)] for batch in batches)


def from_server(server, size):
    """Training images of `/set` on a server, sorted."""

    class Two(ImageFolder):
        class_names = ["even", "odd"]

    data = Two(f"{server.url}/set", streaming=True, stream_size=size, num_workers=0, **OPTIONS)
    data.sources["train"] = data.load("train")
    return sorted(value for batch in data.train_dataloader() for value in values(batch))


def test_parquet_and_tars_stream_from_a_web_server(parquet, tmp_path):
    for folder, size in ((parquet, 32), (write_shards(tmp_path / "tars", each=8), 16)):
        with Server() as server:
            server.add(folder, "/set")
            assert from_server(server, size) == list(range(size))


def test_a_shard_that_ends_too_early_is_an_error_that_names_the_stream(tmp_path):
    with Server() as server:
        server.add(write_shards(tmp_path / "tars", each=8), "/set")
        server.files["/set/train-000001.tar"] = server.files["/set/train-000001.tar"][:4000]
        with pytest.raises(ValueError, match=f"reading the stream {server.url}/set failed .*unexpected end of data"):
            from_server(server, 16)


def test_a_shard_that_the_server_has_not_is_an_error_that_names_the_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.STREAMING_READ_RETRY_INTERVAL", 0)  # it tries for 100 s
    with Server() as server:
        server.add(write_shards(tmp_path / "tars", each=8), "/set")
        server.faults["/set/train-000001.tar"] = [404] * 20
        with pytest.raises(ValueError, match=f"{server.url}/set"):
            from_server(server, 16)


def test_ranks_and_processes_share_a_stream_from_a_web_server(parquet):
    """Of two ranks with two processes each: every image comes once."""
    with Server() as server:
        server.add(parquet, "/set")

        class Two(ImageFolder):
            class_names = ["even", "odd"]

        seen = []
        for rank in range(2):
            data = Two(f"{server.url}/set", streaming=True, stream_size=32, num_workers=2, **OPTIONS)
            data.trainer = SimpleNamespace(
                global_rank=rank,
                world_size=2,
                accumulate_grad_batches=1,
                current_epoch=0,
                training=False,
                fit_loop=SimpleNamespace(restarting=False),
            )
            data.sources["train"] = data.load("train")
            seen += [value for batch in data.train_dataloader() for value in values(batch)]
        assert sorted(seen) == list(range(32))


def test_training_from_a_stream(parquet, make_trainer):
    data, model = stream(parquet, crop="none"), SwinClassifier(Net(), 2)
    trainer = make_trainer(max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, data)
    assert trainer.global_step == 16
    train = torch.tensor(model.backbone.seen)
    assert sorted(train[train < 100].tolist()) == sorted([*range(32)] * 2)
    assert sorted(train[train >= 100].tolist()) == sorted([*range(100, 107)] * 2)


def test_a_stream_without_size_or_split_says_what_to_do(parquet, tmp_path):
    data = ImageFolder(f"file://{parquet}", streaming=True, num_workers=0, **OPTIONS)
    data.sources["train"] = data.load("train")
    with pytest.raises(ValueError, match=r"does not tell its number of images; set data\.stream_size"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="has no split 'train'"):
        ImageFolder(f"file://{tmp_path}/nothing", streaming=True).load("train")
    with pytest.raises(ValueError, match=r"data.path '.*missing' cannot be streamed"):
        ImageFolder(f"{tmp_path}/missing", streaming=True).load("train")
