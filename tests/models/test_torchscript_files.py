"""TorchScript archives are read without executing them."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.models.torchscript_files import is_torchscript, read_torchscript
from swin_lightning.models.weight_files import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.register_buffer("counts", torch.arange(3))

    def forward(self, x):
        return self.layers(x) + self.counts.sum()


@pytest.fixture
def archive(tmp_path):
    net = Net().half()
    torch.jit.save(torch.jit.script(net), tmp_path / "w.pt")
    return net, tmp_path / "w.pt"


def test_parameters_and_buffers(archive):
    net, path = archive
    state = read_torchscript(path)
    expected = net.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in expected.items())
    assert read_checkpoint(path).keys() == expected.keys()


def test_other_files_are_not_archives(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    (tmp_path / "text").write_text("x")
    assert not is_torchscript(tmp_path / "w.pth") and not is_torchscript(tmp_path / "text")


def test_other_objects_are_refused(archive, tmp_path):
    """Unpickling anything but modules and tensors, here a function that creates a folder, is refused."""

    class Explosive:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "exploded"),)

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        evil.writestr("w/constants.pkl", b"")
        evil.writestr("w/data.pkl", pickle.dumps(Explosive()))
    with pytest.raises(UserError, match="refusing to load it"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "exploded").exists()
