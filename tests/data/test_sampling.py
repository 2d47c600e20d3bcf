"""The same pixels whatever happens: loader processes, how they start, ranks."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from swin_lightning.data import ImageFolder
from swin_lightning.data.sampling import ResumableSampler

OPTIONS = {"image_size": 32, "batch_size": 8, "rand_augment": "rand-m9-mstd0.5-inc1", "rotate": 5.0}


@pytest.fixture
def photographs(tmp_path):
    """Forty JPEGs in two classes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "set" / "train" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
        small.resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return str(tmp_path / "set")


def hashes(path, num_workers, context=None, epoch=1, rank=0, world_size=1):
    """One hash a batch, and one an image."""
    data = ImageFolder(path, num_workers=num_workers, **OPTIONS)
    data.sources["train"] = data.load("train")
    sampler = ResumableSampler(40, 8 // world_size, 0, True, rank, world_size)
    sampler.set_epoch(epoch)
    loader = data._loader("train", sampler)
    if context:
        loader.multiprocessing_context = context
    batches = [(batch["image"].numpy(), batch["target"].numpy()) for batch in loader]
    digest = [hashlib.sha256(images.tobytes() + targets.tobytes()).hexdigest() for images, targets in batches]
    return digest, [hashlib.sha256(image.tobytes()).hexdigest() for images, _ in batches for image in images]


def test_any_number_of_forked_processes_gives_the_same_batches(photographs):
    expected, images = hashes(photographs, 0)
    assert len(set(expected)) == 5 and len(set(images)) == 40
    for num_workers in (1, 2, 4):
        assert hashes(photographs, num_workers, "fork")[0] == expected, num_workers
    assert hashes(photographs, 0, epoch=2)[0] != expected


def test_spawned_processes_give_the_same_batches(photographs):
    assert hashes(photographs, 2, "spawn")[0] == hashes(photographs, 0)[0]


def test_two_ranks_see_the_images_of_one(photographs):
    _, one = hashes(photographs, 0)
    ranks = [hashes(photographs, 1, rank=rank, world_size=2)[1] for rank in (0, 1)]
    for b in range(5):
        assert {*ranks[0][4 * b : 4 * b + 4], *ranks[1][4 * b : 4 * b + 4]} == set(one[8 * b : 8 * b + 8])
