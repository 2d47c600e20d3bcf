"""Messages about weights that do not fit: closest names, remedies, invalid values."""

import logging

import pytest
import torch

from swin_lightning.errors import UserError
from swin_lightning.models.weight_errors import describe_mismatch
from swin_lightning.models.weights import export_weights, load_weights
from tests.support.formats import small_classifier


def test_missing_keys_stand_beside_the_closest_ones():
    text = describe_mismatch(["layers.0.weight", "head.bias"], ["layers.0.wieght", "x"], ["a has shape (1,)"])
    assert text == (
        "missing head.bias; missing layers.0.weight (closest in the file: layers.0.wieght); "
        "unexpected layers.0.wieght; unexpected x; a has shape (1,)"
    )
    assert describe_mismatch(["a"], ["a"], []) == ""


@pytest.mark.parametrize(("file", "model", "remedy"), [(1, 2, "swin_*"), (2, 1, "swinv2_*")])
def test_other_version(file, model, remedy, tmp_path):
    torch.save(export_weights(small_classifier(file), "timm"), tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_weights(small_classifier(model), tmp_path / "w.pth")
    assert f"holds Swin V{file}: use a backbone {remedy}, not Swin V{model}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to(torch.int8), "has dtype int8; save the parameters as floating-point numbers"),
        (lambda x: x > 0, "has dtype bool"),
        (lambda x: x.to(torch.complex64), "has dtype complex64"),
        (lambda x: x * float("nan"), "contains NaN or infinite values"),
        (lambda x: x / 0, "contains NaN or infinite values"),
        (lambda x: x.to_sparse(), "is a sparse tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_values_that_are_no_parameters(change, message, tmp_path):
    state, name = export_weights(small_classifier(), "official"), "layers.0.blocks.1.mlp.fc1.weight"
    torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
    model = small_classifier()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=f"w.pth': {name} {message}"):
        load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("in_chans", [1, 2, 4])
def test_other_image_channels(in_chans, tmp_path, caplog):
    """A grey image, repeated over the channels, gives the same logits."""
    caplog.set_level(logging.INFO)
    source, grey = small_classifier(), torch.randn(2, 1, 32, 32)
    torch.save(export_weights(source, "torchvision"), tmp_path / "w.pth")
    model = small_classifier(in_chans=in_chans, weights=tmp_path / "w.pth")
    with torch.no_grad():
        logits = model(grey.expand(-1, in_chans, -1, -1))
        torch.testing.assert_close(logits, source(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=0)
    assert f"patch embedding adapted from 3 to {in_chans} channels" in caplog.text


def test_window_of_the_pretraining_of_v2(tmp_path, caplog):
    torch.save(export_weights(small_classifier(2), "torchvision"), tmp_path / "w.pth")  # window 4, with its buffers
    small_classifier(2, weights=tmp_path / "w.pth")
    assert "pretrained_window_sizes" not in caplog.text
    small_classifier(2, window_size=8, weights=tmp_path / "w.pth")
    assert "build the model with pretrained_window_sizes=[4, 4]" in caplog.text
    caplog.clear()
    small_classifier(2, window_size=8, pretrained_window_sizes=[4, 4], weights=tmp_path / "w.pth")
    assert "pretrained_window_sizes" not in caplog.text
