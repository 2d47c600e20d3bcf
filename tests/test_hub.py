"""Folders for the Hub: read back strictly, configurations of timm and transformers, upload and download."""

import json

import pytest
import torch

from swin_lightning import SwinClassifier
from swin_lightning.batch import Preprocessing
from swin_lightning.errors import UserError
from swin_lightning.export import export
from swin_lightning.hub import is_compatible, network_sizes, read_config
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.tasks.classification import load_classifier
from tests.support.checkpoint import CLASSES, PREPROCESSING, SIZES, write_checkpoint
from tests.support.file_server import Server

WHOLE = {"window_size": 3}  # windows without padding
FILES = ["README.md", "config.json", "model-timm.safetensors", "model-transformers.safetensors"]
FILES += ["model.safetensors.index.json", "preprocessor_config.json"]


def logits(model):
    with torch.no_grad():
        return model(torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("version", "sizes", "files"),
    [
        (1, WHOLE, FILES),
        (2, WHOLE, FILES),
        (1, {"ape": True, **WHOLE}, ["README.md", "config.json", "model.safetensors"]),
        (2, {"qkv_bias": False}, ["README.md", "config.json", "model.safetensors"]),  # padded windows
    ],
)
def test_folder_is_read_back(tmp_path, version, sizes, files):
    expected = write_checkpoint(tmp_path / "a.ckpt", version, **sizes)
    model = load_classifier(tmp_path / "a.ckpt")
    assert model.preprocessing == PREPROCESSING
    model.save_pretrained(tmp_path / "hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == files
    loaded = SwinClassifier.from_pretrained(tmp_path / "hub")
    torch.testing.assert_close(logits(loaded), logits(expected))
    assert loaded.class_names == CLASSES and loaded.preprocessing == PREPROCESSING and not loaded.training
    assert ("timm.create_model" in (tmp_path / "hub/README.md").read_text()) == (len(files) > 3)


@pytest.mark.parametrize(
    "network",
    [
        SwinTransformer(**SIZES | {"img_size": (24, 32), "patch_size": (4, 2), "in_chans": 1, "mlp_ratio": 2.5}),
        SwinTransformer(**SIZES, patch_norm=False, ape=True, qkv_bias=False),
        SwinTransformerV2(img_size=32, depths=(1, 2), num_heads=(3, 6), window_size=4, pretrained_window_sizes=(2, 0)),
    ],
)
def test_sizes_rebuild_the_network(network):
    sizes = network_sizes(network)
    again = {1: SwinTransformer, 2: SwinTransformerV2}[sizes.pop("version")](**sizes)
    again.load_state_dict(network.state_dict())
    assert network_sizes(again) == network_sizes(network)


def test_compatibility():
    assert is_compatible(SwinTransformer(**SIZES | WHOLE), 24)
    assert not is_compatible(SwinTransformer(**SIZES), 24)  # 6 x 6 tokens in windows of 4
    assert not is_compatible(SwinTransformer(**SIZES | WHOLE), 32)
    assert not is_compatible(SwinTransformer(**SIZES | WHOLE | {"window_size": (3, 2)}), 24)


def test_configurations(tmp_path):
    write_checkpoint(
        tmp_path / "a.ckpt", 1, Preprocessing(24, "squash", 0.9, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), **WHOLE
    )
    load_classifier(tmp_path / "a.ckpt").save_pretrained(tmp_path / "hub")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert (config["model_type"], config["image_size"], config["window_size"]) == ("swin", 24, 3)
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "eel"}
    pretrained = config["pretrained_cfg"]
    assert (pretrained["crop_mode"], pretrained["crop_pct"], pretrained["std"]) == ("squash", 1.0, [0.1, 0.2, 0.3])
    processor = json.loads((tmp_path / "hub/preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == config["image_processor_type"] == "TimmWrapperImageProcessor"


def test_what_cannot_be_saved_or_read(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", preprocessing=None)
    with pytest.raises(UserError, match="the preprocessing is unknown"):
        load_classifier(tmp_path / "a.ckpt").save_pretrained(tmp_path / "hub")
    path = tmp_path / "config.json"
    for content in ("{", "{}", '{"swin_lightning": {"weights": "../x"}}', "[]"):
        path.write_text(content)
        with pytest.raises(UserError, match="was not written by save_pretrained"):
            read_config(path)


def test_upload_and_download(tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "a.ckpt", **WHOLE)
    with Server() as server:
        server.replace_hub(monkeypatch, tmp_path / "cache")
        export(["a.ckpt", "--format", "hub", "--output", "hub"])
        assert not server.requests
        export(["a.ckpt", "--format", "hub", "--output", "hub2", "--push", "someone/cats"])
        assert "uploaded: " in capsys.readouterr().out
        assert sorted(server.commits["someone/cats"]) == FILES
        assert 'from_pretrained("someone/cats")' in server.commits["someone/cats"]["README.md"].decode()
        loaded = SwinClassifier.from_pretrained("someone/cats")
        torch.testing.assert_close(logits(loaded), logits(load_classifier("a.ckpt")))
        loaded.push_to_hub("someone/others")
        assert server.commits["someone/others"].keys() == set(FILES)
        with pytest.raises(UserError, match="--push no name: upload failed"):
            export(["a.ckpt", "--format", "hub", "--output", "hub3", "--push", "no name"])
    with pytest.raises(UserError, match="output 'hub' exists and is no empty folder"):
        export(["a.ckpt", "--format", "hub", "--output", "hub"])
    with pytest.raises(UserError, match="--push a/b is only valid with --format hub"):
        export(["a.ckpt", "--format", "onnx", "--output", "a.onnx", "--push", "a/b"])
