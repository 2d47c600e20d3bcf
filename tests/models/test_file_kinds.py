"""Every kind of weights file in the table of docs/checkpoints.md: the loaded model gives the logits of its source."""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swin_lightning.models.weights import export_weights
from tests.support.cli import ROOT
from tests.support.file_server import Server
from tests.support.formats import Classifier, small_backbone, small_classifier
from tests.support.golden import formula_input

KINDS = {}


def kind(name, **options):
    """Register a function that writes a file of this kind; options are those of the model that loads it."""

    def register(write):
        KINDS[name] = (write, options)
        return write

    return register


def exported(model, target, prefix="", **rest):
    return {f"{prefix}{key}": value for key, value in export_weights(model, target).items()} | rest


def save(content, path):
    torch.save(content, path)
    return path


def noise(state):
    """The same keys with other values: loading them by mistake changes the logits."""
    return {key: torch.full_like(value, 0.5) for key, value in state.items()}


for target in ("official", "timm", "torchvision", "transformers", "transformers4", "mmpretrain", "swin_lightning"):
    for version in (1, 2):
        if (target, version) != ("transformers4", 2):
            suffix = ".safetensors" if target in ("transformers", "swin_lightning") else ".pth"

            @kind(f"{target} V{version}", version=version)
            def _(model, folder, target=target, suffix=suffix):
                if suffix == ".safetensors":
                    save_file({k: v.contiguous() for k, v in exported(model, target).items()}, folder / f"w{suffix}")
                    return folder / f"w{suffix}"
                return save({"model": exported(model, target)}, folder / "w.pth")


@kind("official training checkpoint with a yacs configuration")
def _(model, folder):
    config = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", argparse.Namespace())
        patch.setitem(sys.modules, "yacs.config", argparse.Namespace(CfgNode=config))
        return save({"model": exported(model, "official"), "config": config(lr=1)}, folder / "ckpt_epoch_300.pth")


@kind("SimMIM pre-training", headless=True)
def _(model, folder):
    state = {k: v for k, v in exported(model, "official", "encoder.").items() if "head" not in k}
    return save(
        {"model": state | {"encoder.mask_token": torch.ones(1), "decoder.0.weight": torch.ones(2)}}, folder / "w.pth"
    )


@kind("SimMIM pre-training of V2 with rpe_mlp", version=2, headless=True)
def _(model, folder):
    state = {k.replace("cpb_mlp", "rpe_mlp"): v for k, v in exported(model, "official", "encoder.").items()}
    return save({"model": {k: v for k, v in state.items() if "head" not in k}}, folder / "w.pth")


@kind("MoBY: encoder, momentum encoder, projectors, queue", headless=True)
def _(model, folder):
    state = {k: v for k, v in exported(model, "official", "encoder.").items() if "head" not in k}
    momentum = {f"encoder_k.{k}": v for k, v in noise(exported(model, "official")).items()}
    extra = {"projector.0.weight": torch.ones(3), "queue": torch.ones(2)}
    return save({"model": state | momentum | extra}, folder / "w.pth")


@kind("DINO and EsViT: student and teacher", headless=True)
def _(model, folder):
    state = {k: v for k, v in exported(model, "timm", "module.backbone.").items() if "head" not in k}
    extra = {"module.head.mlp.0.weight": torch.ones(3)}
    return save({"student": noise(state) | extra, "teacher": state | extra, "epoch": 3}, folder / "w.pth")


@kind("Lightning checkpoint of another project, model.")
def _(model, folder):
    state = exported(model, "timm", "model.", **{"criterion.weight": torch.ones(3)})
    return save({"pytorch-lightning_version": "2.0", "state_dict": state}, folder / "w.ckpt")


@kind("Lightning checkpoint, net. of torchvision")
def _(model, folder):
    return save(
        {"pytorch-lightning_version": "2.0", "state_dict": exported(model, "torchvision", "net.")}, folder / "w.ckpt"
    )


@kind("Lightning checkpoint, timm backbone and own classifier")
def _(model, folder):
    state = {f"backbone.{k}": v for k, v in exported(model, "timm").items() if "head" not in k}
    head = {"classifier.weight": model.head.weight.detach(), "classifier.bias": model.head.bias.detach()}
    return save({"pytorch-lightning_version": "2.0", "state_dict": state | head}, folder / "w.ckpt")


@kind("Lightning checkpoint with torch.compile, model._orig_mod.")
def _(model, folder):
    return save({"state_dict": exported(model, "official", "model._orig_mod.")}, folder / "w.ckpt")


@kind("Lightning checkpoint with an EMA copy, ema_model.module.")
def _(model, folder):
    state = exported(model, "timm", "ema_model.module.")
    return save({"state_dict": exported(small_noise(model), "timm", "model.") | state}, folder / "w.ckpt")


@kind("Lightning checkpoint of transformers, model.swin.")
def _(model, folder):
    return save({"state_dict": exported(model, "transformers", "model.")}, folder / "w.ckpt")


@kind("run of this project")
def _(model, folder):
    state = model.state_dict() | {"loss.weight": torch.ones(3)}
    return save({"pytorch-lightning_version": "2.6.6", "state_dict": state}, folder / "best.ckpt")


@kind("run of this project with averaged weights")
def _(model, folder):
    content = {"state_dict": model.state_dict(), "current_model_state": noise(model.state_dict())}
    return save({"pytorch-lightning_version": "2.6.6", **content}, folder / "best.ckpt")


for wrapper in ("model_state_dict", "state_dict", "net", "params", "weights"):

    @kind(f"training loop, {{'{wrapper}': ...}}")
    def _(model, folder, wrapper=wrapper):
        return save({wrapper: exported(model, "timm"), "epoch": 3, "optimizer": {"lr": 0.1}}, folder / "w.pth")


for raw, averaged in (
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("params", "params_ema"),
    ("model", "ema"),
):

    @kind(f"averaged weights, {{'{raw}': ..., '{averaged}': ...}}")
    def _(model, folder, raw=raw, averaged=averaged):
        state = exported(model, "torchvision")
        wrapped = {f"module.{key}": value for key, value in state.items()} | {"n_averaged": torch.tensor(7)}
        return save({raw: noise(state), averaged: wrapped}, folder / "w.pth")


@kind("nested averaged weights, {'ema': {'module': ...}}")
def _(model, folder):
    state = exported(model, "timm")
    return save({"state": {"net": noise(state), "ema": {"module": state}}}, folder / "w.pth")


for name, prefix in {
    "DataParallel": "module.",
    "torch.compile": "_orig_mod.",
    "FSDP": "_fsdp_wrapped_module.",
    "Fabric": "_forward_module.",
    "DDP of a compiled model": "module._orig_mod.",
}.items():

    @kind(f"{name}, {prefix}")
    def _(model, folder, prefix=prefix):
        return save(exported(model, "timm", prefix), folder / "w.pth")


@kind("FSDP, wrapper names at any depth")
def _(model, folder):
    state = {re.sub(r"(blocks\.\d+)", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module", k): v
             for k, v in exported(model, "official").items()}  # fmt: skip
    return save(state, folder / "w.pth")


@kind("DeepSpeed, {'module': ...}")
def _(model, folder):
    return save({"module": exported(model, "timm"), "ds_version": "0.16"}, folder / "mp_rank_00_model_states.pt")


@kind("TorchScript archive")
def _(model, folder):
    backbone = small_backbone(num_classes=10)
    backbone.head.load_state_dict(model.head.state_dict())
    torch.jit.save(torch.jit.trace(backbone, formula_input(32, 32)[:1]), folder / "w.pt")
    return folder / "w.pt"


def shards(model, folder, suffix, write):
    state = list(export_weights(model, "transformers").items())
    files = {f"model-0000{i}-of-00002{suffix}": dict(state[i - 1 :: 2]) for i in (1, 2)}
    for name, part in files.items():
        write({k: v.contiguous() for k, v in part.items()}, folder / name)
    return {"weight_map": {key: name for name, part in files.items() for key in part}}


@kind("sharded safetensors, *.index.json")
def _(model, folder):
    index = shards(model, folder, ".safetensors", save_file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


@kind("folder of save_pretrained, sharded .bin")
def _(model, folder):
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(shards(model, folder, ".bin", torch.save)))
    return folder


@kind("NumPy scalars, paths and other plain objects beside the weights")
def _(model, folder):
    extra = {"acc": np.float64(81.2), "epochs": np.arange(3), "path": Path("x"), "log": defaultdict(list, a=[1])}
    return save({"model": exported(model, "timm"), "args": argparse.Namespace(lr=0.1), **extra}, folder / "w.pth")


@kind("float64 parameters")
def _(model, folder):
    return save({key: value.double() for key, value in exported(model, "timm").items()}, folder / "w.pth")


@kind("file of torch before 1.6 (not a zip archive)")
def _(model, folder):
    torch.save(exported(model, "official"), folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


@kind("backbone and head in one module")
def _(model, folder):
    return save(exported(model, "official"), folder / "w.bin")


@kind("address of a file, https://")
def _(model, folder):
    save(exported(model, "timm"), folder / "w.pth")
    server = Server().__enter__()
    server.files["/w.pth"] = (folder / "w.pth").read_bytes()
    return f"{server.url}/w.pth"


def small_noise(model):
    other = Classifier(small_backbone(), 10)
    other.load_state_dict(noise(model.state_dict()))
    return other


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_loaded_model_gives_the_logits_of_its_source(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    write, options = KINDS[name]
    options = dict(options)
    headless = options.pop("headless", False)
    model = small_classifier(**options)
    loaded = small_classifier(weights=write(model, tmp_path), **options)
    if headless:
        loaded.head = model.head = nn.Identity()
    with torch.no_grad():
        expected, images = model(formula_input(32, 32)), formula_input(32, 32)
        torch.testing.assert_close(loaded(images), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_documented_kinds_are_the_tested_ones():
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    table = text.split("<!-- kinds of files -->")[1].split("\n\n")[0]
    rows = [row.split("|")[1].strip().replace("`", "") for row in table.strip().splitlines()[2:]]
    assert rows == list(KINDS) and len(rows) >= 30
