import pytest
import torch

from swin_lightning.explore.attention_cost import attention_costs, saved_bytes


def test_window_attention_scales_linearly_and_global_attention_quadratically():
    costs = attention_costs([56, 112], dim=96, num_heads=3, repeats=1)
    assert costs["tokens"].tolist() == [196, 196, 784, 784]
    megabytes = costs.pivot(index="side", columns="kind", values="megabytes")
    matrices = {side: 4e-6 * 3 * (side // 4) ** 4 for side in (56, 112)}  # float32, 3 heads
    assert megabytes["window"][112] / megabytes["window"][56] == pytest.approx(4, rel=0.1)
    assert all(megabytes["global"][side] > matrices[side] for side in matrices)
    assert megabytes["global"][112] / megabytes["global"][56] > 8
    assert (costs["milliseconds"] > 0).all()


def test_saved_bytes_counts_each_storage_once():
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 400  # its result
    assert saved_bytes(lambda: x.exp().view(10, 10).exp()) == 800
    assert saved_bytes(lambda: x.exp().square()) == 400  # both operations save the same tensor
    assert saved_bytes(lambda: x + 1) == 0
    assert saved_bytes(lambda: x.square(), exclude=[x]) == 0
