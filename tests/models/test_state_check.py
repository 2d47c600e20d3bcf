"""State dicts that do not fit a model, and models that are larger than their file."""

import pytest
import torch
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.models.state_check import check_state, limit_to_state


def model():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_fitting_state_is_returned_and_masks_may_be_infinite():
    net = model()
    net.register_buffer("mask", torch.full((2,), float("-inf")))
    assert check_state(net.state_dict(), net, "f").keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": torch.zeros(2, 4)}, r"0\.weight has shape \(2, 4\), expected \(2, 3\)"),
        ({"0.weight": torch.full((2, 3), float("nan"))}, r"0\.weight contains NaN"),
        ({"0.weight": torch.zeros(2, 3).to_sparse()}, "is a sparse tensor"),
        ({"0.weight": torch.zeros(2, 3, device="meta")}, "is a meta tensor"),
        ({"0.weight": torch.zeros(2, 3, dtype=torch.int8)}, "has dtype int8"),
        ({"0.weight": torch.zeros(2, 3, dtype=torch.complex64)}, "has dtype complex64"),
        ({"0.weight": torch.zeros(1, 1).expand(2, 3)}, "repeats the same elements"),
        ({"1.num_batches_tracked": torch.tensor(1.0)}, "has dtype float32"),
        ({"0.weight": None}, r"missing 0\.weight"),
        ({"0.weight": "text"}, r"missing 0\.weight"),
        ({"extra": torch.zeros(1)}, "unexpected extra"),
    ],
)
def test_entries_that_do_not_fit(change, message):
    net = model()
    with pytest.raises(UserError, match=f"^f.*{message}"):
        check_state({**net.state_dict(), **change}, net, "f")
    with pytest.raises(UserError, match="f has no state dict, but a list"):
        check_state([], net, "f")


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Embedding(10**9, 8),
        lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)),
        lambda: nn.ModuleList(nn.Linear(1000, 1000) for _ in range(500)),
        lambda: torch.zeros((10**5, 10**5)),
        lambda: torch.full((10**9,), 0.0),
        lambda: torch.linspace(0, 1, 10**10),
        lambda: torch.arange(10**10),
        lambda: torch.eye(10**6),
    ],
)
def test_larger_model_is_not_built(build):
    with pytest.raises(UserError, match="f describes a larger model than it holds"), limit_to_state({}, "f"):
        build()


def test_model_of_the_file_is_built():
    state = model().state_dict()
    with limit_to_state(state, "f"):
        model()
    model()
