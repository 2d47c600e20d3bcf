"""Streams of parquet files and tar shards, from folders, URLs and a web server."""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from swin_lightning.data import ImageFolder
from swin_lightning.data.streaming import StreamDataset
from swin_lightning.data.transforms import train_transform
from swin_lightning.errors import UserError
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.file_server import Server
from tests.support.images import Recorder, grey_png, write_shards

OPTIONS = {"streaming": True, "image_size": 8, "batch_size": 4, "mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """`datasets` waits 5 s at the end of every pass over parquet files."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)


class Named(ImageFolder):
    class_names = ["even", "odd"]  # a stream of tar shards has none


def stream(path, num_workers=0, **options):
    """Data module of the fixture `parquet`, ready for training and validation."""
    data = ImageFolder(str(path), stream_size=32, num_workers=num_workers, **OPTIONS | options)
    data.setup("fit")
    return data


def values(batch):
    """Grey values of the images in a batch."""
    return batch["image"][:, 0, 4, 4].tolist()


def test_epoch_has_every_image_once_in_its_own_order(parquet):
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
        assert [value % 2 for value in orders[-1]] == [t for batch in batches for t in batch["target"].tolist()]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize(("num_workers", "start_batches"), [(0, (1, 2, 5, 7)), (2, (2, 5))])
def test_resumed_epoch_continues_with_the_same_batches(parquet, num_workers, start_batches):
    loader = stream(parquet, num_workers).train_dataloader()
    full = [values(batch) for batch in loader]
    assert sorted(value for batch in full for value in batch) == list(range(32))
    for start_batch in start_batches:
        loader.start_batch = start_batch
        assert [values(batch) for batch in loader] == full[start_batch:], start_batch


def test_augmentation_is_a_function_of_seed_epoch_and_file_content(parquet):
    transform = train_transform(8, fill=(0, 0, 0), rand_augment="rand-m9-mstd0.5-inc1")
    by_crc = {zlib.crc32(grey_png(value, (32, 32))): value for value in range(32)}
    for batch in stream(parquet, rand_augment="rand-m9-mstd0.5-inc1").train_dataloader():
        for pixels, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            image = np.full((32, 32, 3), by_crc[index], np.uint8)
            assert np.array_equal(pixels.permute(1, 2, 0), transform(image, (0, 0, index)))


def test_ranks_share_a_stream_and_validate_every_image_once(parquet):
    data = stream(parquet)
    shares = []
    for rank in (0, 1):
        samples = iter(StreamDataset(data.sources["train"], data.train_transform(), 0, True, rank, 2))
        shares.append([int(next(samples)["image"][0, 4, 4]) for _ in range(16)])
    assert sorted(shares[0] + shares[1]) == list(range(32))
    val = [list(StreamDataset(data.sources["val"], data.eval_transform(), 0, False, rank, 2)) for rank in (0, 1)]
    assert [len(share) for share in val] == [4, 4]
    counted = [int(item["image"][0, 4, 4]) for share in val for item in share if item["target"] >= 0]
    assert sorted(counted) == list(range(100, 107))


# Lightning warns about lengths that differ between workers; the length of StreamLoader does not depend on them
@pytest.mark.filterwarnings("ignore:Your .IterableDataset. has .__len__. defined")
def test_training_on_a_stream(parquet, make_trainer):
    data, model = stream(parquet, crop="none"), SwinClassifier(Recorder(), 2)
    trainer = make_trainer(max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, data)
    assert trainer.global_step == 16
    seen = model.backbone.values()
    assert sorted(value for value in seen if value < 100) == sorted([*range(32)] * 2)
    assert sorted(value for value in seen if value >= 100) == sorted([*range(100, 107)] * 2)


# URLs


def read_url(url, size):
    """Grey values of the training images of a URL, sorted; checks their labels."""
    data = Named(url, stream_size=size, num_workers=0, **OPTIONS)
    data.sources["train"] = data.load("train")
    batches = list(data.train_dataloader())
    assert all(batch["target"].tolist() == [value % 2 for value in values(batch)] for batch in batches)
    return sorted(value for batch in batches for value in values(batch))


def test_parquet_files_and_tar_shards_stream_from_urls(parquet, tmp_path):
    shards = write_shards(tmp_path / "tars", images_per_shard=8)
    assert read_url(f"file://{shards}", 16) == list(range(16))
    with Server() as server:
        server.add(parquet, "/parquet")
        server.add(shards, "/tars")
        assert read_url(f"{server.url}/parquet", 32) == list(range(32))
        assert read_url(f"{server.url}/tars", 16) == list(range(16))


@pytest.mark.slow  # spawns four workers
def test_ranks_and_workers_share_a_stream_from_a_url(parquet):
    """Two ranks with two workers each: every image is read once."""
    seen = []
    with Server() as server:
        server.add(parquet, "/set")
        for rank in range(2):
            data = ImageFolder(f"{server.url}/set", stream_size=32, num_workers=2, **OPTIONS)
            data.trainer = SimpleNamespace(
                global_rank=rank,
                world_size=2,
                accumulate_grad_batches=1,
                current_epoch=0,
                fit_loop=SimpleNamespace(restarting=False),
            )
            data.sources["train"] = data.load("train")
            loader = data.train_dataloader()
            assert loader.num_workers == 2 and loader.multiprocessing_context.get_start_method() == "spawn"
            seen += [value for batch in loader for value in values(batch)]
    assert sorted(seen) == list(range(32))


def test_workers_are_forked_for_local_files_only(parquet):
    for path, start in ((f"file://{parquet}", None), (str(parquet), None)):
        data = ImageFolder(path, stream_size=32, num_workers=1, **OPTIONS)
        data.sources = {split: data.load(split) for split in ("train", "val")}
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert loader.num_workers == 1 and loader.multiprocessing_context is start
    with Server() as server:
        server.add(parquet, "/set")
        stream = ImageFolder(f"{server.url}/set", stream_size=32, **OPTIONS).load("train")
        assert stream.worker_options(2) == {"num_workers": 2, "multiprocessing_context": "spawn"}
        assert stream.worker_options(0)["multiprocessing_context"] is None


def test_truncated_shard_is_an_error_with_the_url(tmp_path):
    with Server() as server:
        server.add(write_shards(tmp_path / "tars", images_per_shard=8), "/set")
        server.files["/set/train-000001.tar"] = server.files["/set/train-000001.tar"][:4000]
        message = f"reading the stream '{server.url}/set' failed .*unexpected end of data.* resume with --ckpt_path"
        with pytest.raises(UserError, match=message):
            read_url(f"{server.url}/set", 16)


def test_shard_missing_on_the_server_is_an_error_with_the_url(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.STREAMING_READ_RETRY_INTERVAL", 0)  # retries take 100 s otherwise
    with Server() as server:
        server.add(write_shards(tmp_path / "tars", images_per_shard=8), "/set")
        server.faults["/set/train-000001.tar"] = [("status", 404)] * 40
        with pytest.raises(UserError, match=f"{server.url}/set"):
            read_url(f"{server.url}/set", 16)


# errors


def test_unknown_size_is_an_error(parquet):
    data = ImageFolder(f"file://{parquet}", num_workers=0, **OPTIONS)
    data.sources["train"] = data.load("train")
    with pytest.raises(UserError, match=r"data\.stream_size: .* does not state its number of images; set it"):
        data.train_dataloader()


def test_missing_split_or_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: no split 'train' in 'file:.*', only \[\]"):
        ImageFolder(f"file://{tmp_path}/nothing", streaming=True).load("train")
    with pytest.raises(UserError, match=r"data\.path: cannot stream '.*missing'"):
        ImageFolder(f"{tmp_path}/missing", streaming=True).load("train")


def test_stream_without_images_is_an_error(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("text,label\nx,0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.path: no image column in"):
        ImageFolder(str(tmp_path), streaming=True).load("train")
