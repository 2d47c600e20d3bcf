"""`half_residual`: the residual of the first stage in half precision, under autocast as on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swin_lightning.models import SwinTransformer

SIZES = {"img_size": 32, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "num_classes": 4}


@pytest.fixture(autouse=True)
def layer_norm_of_a_gpu(monkeypatch):
    """Under autocast a GPU's LayerNorm returns float32; that of a CPU keeps the dtype."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return torch.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)

    monkeypatch.setattr(nn.LayerNorm, "forward", forward)


def build(half_residual):
    torch.manual_seed(0)
    return SwinTransformer(**SIZES, drop_path_rate=0.0, half_residual=half_residual)


def test_dtype_of_the_residual_and_error_of_the_logits():
    images = torch.randn(4, 3, 32, 32)
    exact = build(False)(images)
    for half_residual, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        model = build(half_residual)
        with torch.autocast("cpu", torch.bfloat16):
            first, second = model.forward_intermediates(images)
            logits = model(images)
        assert (first.dtype, second.dtype) == (dtype, torch.bfloat16)
        torch.testing.assert_close(logits.float(), exact, atol=2e-2, rtol=0)
        assert model.forward_intermediates(images)[0].dtype == torch.float32  # without autocast


@pytest.mark.slow
def test_loss_with_half_residual_is_within_the_noise_of_the_data_order():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(256) % 4
    patterns = F.interpolate(torch.randn(4, 3, 4, 4, generator=generator), scale_factor=8)
    images = patterns[targets] + 3 * torch.randn(256, 3, 32, 32, generator=generator)

    def final_loss(half_residual, seed):
        model, order, losses = build(half_residual).train(), torch.Generator().manual_seed(seed), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
        for _ in range(120):
            batch = torch.randperm(256, generator=order)[:32]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images[batch])
            loss = F.cross_entropy(logits.float(), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses[-40:]) / 40

    full = [final_loss(False, seed) for seed in range(3)]
    half = [final_loss(True, seed) for seed in range(3)]
    differences = [abs(a - b) for a, b in zip(full, half, strict=True)]
    assert max(full) < 0.9 * 1.386  # it learns: chance is log(4)
    assert sum(differences) / 3 < max(full) - min(full)
