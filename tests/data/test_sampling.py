"""Order and randomness of samples: independent of workers, start method and ranks; unreadable images."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swin_lightning.data import ImageFolder
from swin_lightning.data.readers import ArrayReader, FileReader
from swin_lightning.data.sampling import ImageDataset, LazyDataLoader, ResumableSampler, balanced_order, deal_pairs
from swin_lightning.data.transforms import eval_transform, train_transform
from swin_lightning.errors import UserError
from tests.support.images import write_image, write_photographs

OPTIONS = {"image_size": 32, "batch_size": 8, "rand_augment": "rand-m9-mstd0.5-inc1", "rotate": 5.0}

# the sampler


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 12, 13])
def test_evaluation_yields_every_sample_once_and_marks_padding(size, world_size):
    ranks = [list(ResumableSampler(size, 4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(keys) for keys in ranks}) == 1  # collective operations need equal numbers of steps
    indices = [index for keys in ranks for _, index in keys]
    assert sorted(index for index in indices if index >= 0) == list(range(size))
    assert sum(index < 0 for index in indices) == -size % world_size


def test_training_order_is_a_function_of_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        sampler = ResumableSampler(50, 10, seed, training=True)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert {key[0] for key in keys} == {epoch}
            orders[seed, epoch] = tuple(index for _, index in keys)
            assert list(sampler) == keys
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize("size", [48, 53])
def test_global_batch_has_the_same_samples_on_one_and_two_ranks(size):
    one = [index for _, index in ResumableSampler(size, 8, training=True)]
    two = [[index for _, index in ResumableSampler(size, 4, training=True, rank=r, world_size=2)] for r in (0, 1)]
    assert len(one) == size // 8 * 8  # the incomplete last batch is dropped
    assert len(two[0]) == len(two[1]) == len(one) // 2
    for b in range(size // 8):
        assert {*two[0][4 * b : 4 * b + 4], *two[1][4 * b : 4 * b + 4]} == set(one[8 * b : 8 * b + 8])


@pytest.mark.parametrize("batch_size", [4, 2, 3])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (1, 4), (2, 1), (3, 2)])
def test_pairs_are_in_the_same_micro_batch(world_size, accumulate, batch_size):
    total, places = batch_size * world_size * accumulate, []
    for rank in range(world_size):
        for micro_batch in deal_pairs(batch_size, rank, world_size, accumulate).tolist():
            places += micro_batch
            mirrored = [total - 1 - place for place in reversed(micro_batch)]
            middle = {batch_size // 2} if batch_size % 2 and world_size * accumulate > 1 else set()
            assert all(a == b for i, (a, b) in enumerate(zip(micro_batch, mirrored, strict=True)) if i not in middle)
    assert sorted(places) == list(range(total))


def test_one_process_keeps_the_order_of_the_permutation():
    assert deal_pairs(5, 0, 1, 1).tolist() == [[0, 1, 2, 3, 4]]
    assert deal_pairs(6, 0, 1, 1).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_incomplete_global_batch_is_dropped(accumulate):
    def keys(rank, world_size):
        return list(ResumableSampler(1257, 16 // accumulate // world_size, 0, True, rank, world_size, accumulate))

    whole = [index for _, index in ResumableSampler(1257, 16, training=True)]
    assert len(whole) == 78 * 16
    ranks = [[index for _, index in keys(rank, 2)] for rank in (0, 1)]
    for step in range(78):
        expected = set(whole[16 * step : 16 * step + 16])
        assert {index for _, index in keys(0, 1)[16 * step : 16 * step + 16]} == expected
        assert {index for rank in ranks for index in rank[8 * step : 8 * step + 8]} == expected


@pytest.mark.parametrize("world_size", [1, 2])
def test_start_batch_applies_to_one_epoch(world_size):
    sampler = ResumableSampler(40, 4, training=True, rank=world_size - 1, world_size=world_size)
    full = list(sampler)
    sampler.start_batch = 2
    assert list(sampler) == full[8:]
    assert list(sampler) == full


def test_lazy_loader_reads_nothing_before_the_first_batch():
    reads = []

    class Recording(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            reads.append(index)
            return index

    batches = iter(LazyDataLoader(Recording(), 2))
    assert reads == []
    assert next(batches).tolist() == [0, 1]


# the data set


def test_padding_samples_have_no_label():
    reader = ArrayReader(np.zeros((3, 4, 4, 3), np.uint8), np.array([5, 6, 7]))
    dataset = ImageDataset(reader, eval_transform(4, "squash"))
    assert [dataset[0, index]["target"] for index in (0, 2, ~0, ~2)] == [5, 7, -1, -1]
    assert [dataset[0, index]["index"] for index in (0, 2, ~0, ~2)] == [0, 2, -1, -1]


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    images = np.random.default_rng(0).integers(256, size=(2, 40, 40, 3), dtype=np.uint8)
    reader = ArrayReader(images, np.array([0, 1]))
    transform = train_transform(32, rotate=10.0, rand_augment="rand-m9-mstd0.5-inc1")
    pixels = {}
    for seed in (0, 1):
        dataset = ImageDataset(reader, transform, seed)
        for epoch in (0, 1):
            for index in (0, 1):
                pixels[seed, epoch, index] = dataset[epoch, index]["image"].numpy().tobytes()
                assert dataset[epoch, index]["image"].numpy().tobytes() == pixels[seed, epoch, index]
    assert len(set(pixels.values())) == len(pixels)
    assert dataset[0]["image"].numpy().tobytes() == pixels[1, 0, 0]  # an index alone is of epoch 0


@pytest.fixture
def corrupt(tmp_path):
    """Reader of five images, of which 1, 2 and 4 are corrupt; image i has grey value 10 * i and label i."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        write_image(path, 10 * i)
    for i in (1, 2, 4):
        paths[i].write_bytes(b"")
    return FileReader(paths, list(range(5)))


def summary(dataset):
    return [
        (int(item["image"].float().mean()), item["target"], item["index"], item["bad_index"])
        for item in (dataset[0, i] for i in range(len(dataset)))
    ]


def test_training_replaces_a_corrupt_image_by_the_next_readable_one(corrupt):
    dataset = ImageDataset(corrupt, eval_transform(4), on_bad_image="skip", training=True)
    assert summary(dataset) == [(0, 0, 0, -1), (30, 3, 3, 1), (30, 3, 3, 2), (30, 3, 3, -1), (0, 0, 0, 4)]


def test_evaluation_excludes_corrupt_images(corrupt):
    dataset = ImageDataset(corrupt, eval_transform(4), on_bad_image="skip")
    assert summary(dataset) == [(0, 0, 0, -1), (0, -1, -1, 1), (0, -1, -1, 2), (30, 3, 3, -1), (0, -1, -1, 4)]


def test_corrupt_images_are_errors_by_default(corrupt):
    with pytest.raises(UserError, match=r"cannot read image .*1\.png"):
        ImageDataset(corrupt, eval_transform(4))[0, 1]
    for path in corrupt.paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read .*3\.png nor the images after it \(5 tried\)"):
        ImageDataset(corrupt, eval_transform(4), on_bad_image="skip", training=True)[0, 3]


# loaders of a data module


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A data set of forty JPEGs in two classes."""
    return str(write_photographs(tmp_path_factory.mktemp("photographs")))


def hashes(path, num_workers, start_method=None, epoch=1, rank=0, world_size=1):
    """One hash per batch, and one per image."""
    data = ImageFolder(path, num_workers=num_workers, val_size=0, **OPTIONS)
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=1,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(restarting=False),
    )
    data.sources["train"] = data.load("train")
    loader = data.train_dataloader()
    if start_method:
        loader.multiprocessing_context = start_method
    batches = [(batch["image"].numpy(), batch["target"].numpy()) for batch in loader]
    digest = [hashlib.sha256(images.tobytes() + targets.tobytes()).hexdigest() for images, targets in batches]
    return digest, [hashlib.sha256(image.tobytes()).hexdigest() for images, _ in batches for image in images]


@pytest.fixture(scope="module")
def expected(photographs):
    """Hashes without workers."""
    return hashes(photographs, 0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_batches_are_the_same_for_any_number_of_forked_workers(photographs, expected):
    assert len(set(expected[0])) == 5 and len(set(expected[1])) == 40
    for num_workers in (1, 2, 4):
        assert hashes(photographs, num_workers, "fork")[0] == expected[0], num_workers
    assert hashes(photographs, 0, epoch=2)[0] != expected[0]


@pytest.mark.slow
def test_batches_are_the_same_in_spawned_workers(photographs, expected):
    assert hashes(photographs, 1, "spawn")[0] == expected[0]


def test_two_ranks_see_the_images_of_one(photographs, expected):
    ranks = [hashes(photographs, 0, rank=rank, world_size=2)[1] for rank in (0, 1)]
    for b in range(5):
        assert {*ranks[0][4 * b : 4 * b + 4], *ranks[1][4 * b : 4 * b + 4]} == set(expected[1][8 * b : 8 * b + 8])


# balanced classes


def test_balanced_epoch_has_all_classes_equally_often_and_is_a_function_of_seed_and_epoch():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    order = balanced_order(labels, np.random.default_rng(1))
    assert np.bincount(labels[order % 100]).tolist() in ([34, 33, 33], [33, 34, 33], [33, 33, 34])
    assert len(set(order)) == 100  # repeated samples have other numbers
    large, small = order[labels[order % 100] == 0], order[labels[order % 100] == 2]
    assert large.max() < 100 and sorted(small)[:30] == [95 + i % 5 + 100 * (i // 5) for i in range(30)]
    samplers = [ResumableSampler(100, 10, 3, True, rank, 2, labels=labels) for rank in (0, 1)]
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        whole = ResumableSampler(100, 20, 3, True, labels=labels)
        whole.set_epoch(epoch)
        assert sorted(key for sampler in samplers for key in sampler) == sorted(whole)
    whole.start_batch = 2
    assert list(whole) == list(whole)[40:]


def test_repeated_samples_are_augmented_differently():
    images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    dataset = ImageDataset(ArrayReader(images, np.array([0, 1])), train_transform(8), training=True)
    first, again, other = dataset[0, 1], dataset[0, 3], dataset[0, 1]
    assert (first["index"], again["index"], again["target"]) == (1, 1, 1)
    assert torch.equal(first["image"], other["image"]) and not torch.equal(first["image"], again["image"])
