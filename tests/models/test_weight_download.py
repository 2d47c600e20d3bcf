"""Paths, addresses and Hub names of weights; checksums; messages without a network."""

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import torch

from swin_lightning.errors import UserError
from swin_lightning.models.weight_download import local_file
from swin_lightning.models.weights import save_weights
from tests.support.file_server import Server
from tests.support.formats import assert_same_features, small_classifier


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_home_and_folders(tmp_path):
    (tmp_path / "w.pth").touch()
    assert local_file("~/w.pth") == tmp_path / "w.pth"
    with pytest.raises(UserError, match=r"has none of model.safetensors, .*; name a file"):
        local_file(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert local_file(tmp_path).name == "pytorch_model.bin"


def test_addresses_are_downloaded_once_and_verified():
    digest = hashlib.sha256(b"content").hexdigest()
    with Server() as server:
        server.files |= {f"/swin-{digest[:8]}.pth": b"content", "/swin-00000000.pth": b"content", "/w.pth": b"content"}
        path = local_file(f"{server.url}/swin-{digest[:8]}.pth")
        assert path.read_bytes() == b"content"
        requests = len(server.requests)
        assert local_file(f"{server.url}/swin-{digest[:8]}.pth") == path and len(server.requests) == requests
        assert local_file(f"{server.url}/w.pth#sha256={digest}").read_bytes() == b"content"
        for url in (f"{server.url}/swin-00000000.pth", f"{server.url}/w.pth?x#sha256={'0' * 64}"):
            with pytest.raises(UserError, match="the file differs from its checksum"):
                local_file(url)
        with pytest.raises(UserError, match="must be that of a file"):
            local_file(server.url)
        url = server.url
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(.*refused.*\); check address and network, or download"
    ):
        local_file(f"{url}/other.pth")


def test_hub(tmp_path, monkeypatch):
    model = small_classifier()
    save_weights(model, tmp_path / "hub/model.safetensors", "timm")
    asked = []

    class Api:
        def list_repo_files(self, name, revision):
            return ["README.md", "model.safetensors"]

    def download(name, file, revision):
        asked.append((name, file, revision))
        return str(tmp_path / "hub" / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same_features(small_classifier(weights="hf-hub:owner/name"), model)
    assert_same_features(small_classifier(weights="hf-hub:owner/name@v1/model.safetensors"), model)
    assert asked == [("owner/name", "model.safetensors", None), ("owner/name", "model.safetensors", "v1")]
    blob = tmp_path / "blobs" / hashlib.sha256(b"right").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"wrong")
    (tmp_path / "hub/x.pth").symlink_to(blob)
    with pytest.raises(UserError, match="checksum mismatch; deleted the corrupt file"):
        local_file("hf-hub:owner/name/x.pth")
    assert not blob.exists()


def test_hub_without_network(monkeypatch):
    class Api:
        def list_repo_files(self, name, revision):
            raise OSError("Network is unreachable\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(
        UserError, match=r"\(Network is unreachable\); .* `hf download owner/name` and pass its path"
    ) as e:
        local_file("hf-hub:owner/name")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="expected hf-hub:owner/name"):
        local_file("hf-hub:name")


def test_weights_from_a_path_object(tmp_path):
    torch.save({}, tmp_path / "w.pth")
    assert local_file(Path(tmp_path / "w.pth")) == tmp_path / "w.pth"
