import itertools
import pickle

import pytest
import torch

from swin_lightning.explore.receptive_field import receptive_fields
from swin_lightning.models import SwinTransformer
from tests.support.small_swin import SMALL


@pytest.mark.parametrize("size", [(24, 24), (20, 28)])
def test_receptive_fields_match_windows_shifts_and_merging(size):
    model = SwinTransformer(**SMALL).eval()
    H, W = size[0] // 2, size[1] // 2
    fields = {(y, x): {(y, x)} for y, x in itertools.product(range(H), range(W))}  # token -> patches
    expected = [fields[H // 2, W // 2]]
    for stage in range(2):
        for shift in (0, 2):
            sy, sx = (shift if H > 4 else 0), (shift if W > 4 else 0)
            windows = {}
            for y, x in fields:  # window numbers before the cyclic shift: windows never wrap around
                windows.setdefault(((y - sy) // min(4, H), (x - sx) // min(4, W)), []).append((y, x))
            fields = {t: set().union(*(fields[u] for u in tokens)) for tokens in windows.values() for t in tokens}
            expected.append(fields[H // 2, W // 2])
        if stage == 0:
            H, W = -(-H // 2), -(-W // 2)
            merged = {(y, x): set() for y, x in itertools.product(range(H), range(W))}
            for (y, x), patches in fields.items():
                merged[y // 2, x // 2] |= patches
            fields = merged
            expected.append(fields[H // 2, W // 2])
    measured = receptive_fields(model, torch.randn(1, 3, *size))
    names = ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "layers.0.downsample", "layers.1.blocks.0"]
    assert [field.name for field in measured] == [*names, "layers.1.blocks.1"]
    for field, patches in zip(measured, expected, strict=True):
        visible = {(int(y) // 2, int(x) // 2) for y, x in (field.influence > 0).nonzero()}
        assert visible == patches, field.name
    assert measured[1].extent == (8, 8)
    pickle.dumps(model)  # fails if a hook, which is a local function, was not removed
