"""Patch embedding and merging, MLP with recomputed GELU, stochastic depth."""

import copy
import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from swin_lightning.models.layers import DropPath, Mlp, PatchEmbed, PatchMerging
from swin_lightning.models.swin import SwinTransformerBlock
from swin_lightning.models.windows import shifted_window_mask
from tests.support.golden import randomize


def test_patch_merging_concatenates_neighbours_column_by_column():
    merging = PatchMerging(1)
    merging.norm, merging.reduction = torch.nn.Identity(), torch.nn.Identity()
    x = torch.arange(6.0).view(1, 2, 3, 1)  # 0 1 2 / 3 4 5, padded by a column of zeros
    # channels: (0, 0), (1, 0), (0, 1), (1, 1)
    assert merging(x).tolist() == [[[[0, 3, 1, 4], [2, 5, 0, 0]]]]
    assert merging(x.transpose(1, 2)).tolist() == [[[[0, 1, 3, 4]], [[2, 0, 5, 0]]]]


def test_patch_embedding_is_a_linear_layer_on_patches():
    embed = PatchEmbed(patch_size=2, in_chans=3, embed_dim=5)
    images = torch.randn(2, 3, 4, 5)  # padded to width 6
    patch = torch.zeros(2, 3, 2, 2)
    patch[..., :1] = images[..., 2:4, 4:]  # patch (1, 2)
    expected = embed.norm(patch.flatten(1) @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    tokens = embed(images)
    assert tokens.shape == (2, 2, 3, 5)
    torch.testing.assert_close(tokens[:, 1, 2], expected)


def test_gelu_output_is_recomputed_with_the_same_gradients(monkeypatch):
    gelu, outputs = torch.nn.functional.gelu, []

    def recording_gelu(x):
        y = gelu(x)
        outputs.append(StorageWeakRef(y.untyped_storage()))
        return y

    monkeypatch.setattr(torch.nn.functional, "gelu", recording_gelu)
    model, x, gradients = randomize(Mlp(8, 32)).train(), torch.randn(2, 7, 7, 8), []
    for recompute in (True, False):
        model.recompute_gelu = recompute
        loss = model(x).square().sum()
        assert outputs[-1].expired() == recompute
        gradients.append(torch.autograd.grad(loss, [*model.parameters()]))
    assert len(outputs) == 3  # once more in the first backward pass
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def drop_path(p, x, branch=torch.ones_like, seed=0):
    torch.manual_seed(seed)
    return DropPath(p).train()(x, branch)


def test_drop_path_drops_samples_and_keeps_the_expectation():
    out = drop_path(0.25, torch.zeros(8000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == out[:, :1, :1]).all()  # whole samples
    assert out.mean().item() == pytest.approx(1, abs=0.03)  # five standard deviations
    x = torch.randn(4, 2)
    assert torch.equal(DropPath(0.25).eval()(x, torch.ones_like), x + 1)
    assert torch.equal(drop_path(0.0, x), x + 1)
    assert torch.equal(drop_path(1.0, x), x)


def test_drop_path_rounds_the_number_of_kept_samples_at_random():
    # 2.8 of 4 samples are kept: 3 in 80 % of the draws and 2 in the others, every subset equally often
    p, n, draws = 0.3, 4, 4000
    module, x = DropPath(p).train(), torch.zeros(n, 1)
    torch.manual_seed(0)
    kept = torch.stack([module(x, torch.ones_like).squeeze(1) > 0 for _ in range(draws)])
    counts = kept.sum(1).bincount(minlength=n + 1) / draws
    assert counts.tolist() == pytest.approx([0, 0, 0.2, 0.8, 0], abs=0.03)  # more than four standard deviations
    assert counts[[0, 1, 4]].sum() == 0
    subsets = (kept.long() @ 2 ** torch.arange(n)).bincount(minlength=2**n) / draws
    expected = [{2: 0.2 / 6, 3: 0.8 / 4}.get(number.bit_count(), 0) for number in range(2**n)]
    assert subsets.tolist() == pytest.approx(expected, abs=0.02)
    assert kept.double().mean(0).tolist() == pytest.approx([1 - p] * n, abs=0.03)


@pytest.mark.parametrize(("p", "number"), [(0.5, {2}), (0.1, {3, 4}), (0.9, {0, 1}), (1.0, {0})])
def test_drop_path_uses_at_most_two_batch_sizes(p, number):
    sizes = set()

    def branch(x):
        sizes.add(len(x))
        return torch.ones_like(x)

    module = DropPath(p).train()
    for _ in range(100):
        module(torch.zeros(4, 1), branch)
    assert sizes == number


def test_dense_drop_path_draws_independently_per_sample():
    p, n, draws = 0.3, 4, 4000
    module, x = DropPath(p).train(), torch.zeros(n, 1)
    module.dense = True
    torch.manual_seed(0)
    kept = torch.stack([module(x, torch.ones_like).squeeze(1) > 0 for _ in range(draws)]).double()
    counts = kept.sum(1).long().bincount(minlength=n + 1) / draws
    binomial = [math.comb(n, k) * (1 - p) ** k * p ** (n - k) for k in range(n + 1)]
    assert counts.tolist() == pytest.approx(binomial, abs=0.035)  # more than four standard deviations
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.07


@pytest.mark.parametrize("seed", [0, 3, 10])
@pytest.mark.parametrize("shift", [0, 2])
def test_drop_path_gradients_equal_multiplication_by_a_mask(seed, shift):
    block = randomize(SwinTransformerBlock(8, 2, 4, shift, drop_path=0.5)).double().train()
    mask = shifted_window_mask((8, 8), (4, 4), (shift, shift))
    x = torch.randn(5, 8, 8, 8, dtype=torch.float64)
    kept = []  # per branch, the samples that were kept

    def reference(keep, x, branch):  # as in the paper: compute everything, then multiply by 0 or 2
        return x + branch(x) * 2 * keep[:, None, None, None]

    results = []
    for masked in (False, True):
        own, leaf = copy.deepcopy(block), x.clone().requires_grad_()
        if masked:
            draws = iter(kept)
            own.drop_path.forward = lambda x, branch, draws=draws: reference(next(draws), x, branch)
        else:
            forward = own.drop_path.forward

            def recording(x, branch, forward=forward):
                y = forward(x, branch)
                kept.append((y != x).flatten(1).any(1).double())
                return y

            own.drop_path.forward = recording
        torch.manual_seed(seed)
        own(leaf, mask).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in own.parameters())])
    assert sum(len(k) - k.sum() for k in kept) > 0
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_parameters_have_gradients_if_all_samples_are_dropped():
    block = SwinTransformerBlock(8, 2, 4, 2, drop_path=1.0).train()
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    block(x, shifted_window_mask((8, 8), (4, 4), (2, 2))).sum().backward()
    assert (x.grad == 1).all()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())  # DDP waits for gradients


def test_drop_path_applies_to_both_branches_of_a_block():
    block = SwinTransformerBlock(8, 2, 4, drop_path=1.0).train()
    x = torch.randn(2, 4, 4, 8)
    assert torch.equal(block(x), x)
