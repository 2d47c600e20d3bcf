"""SimMIM: against the official code, its masks in training, weights from and to other tasks."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from swin_lightning import SimMIM, SwinClassifier
from swin_lightning.data import Digits
from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.tasks.simmim import normalize_locally
from tests.support.golden import formula_input, formula_parameters, load_golden

SMALL = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}


def small(cls=SwinTransformer, **kwargs):
    return SimMIM(cls(**SMALL), **{"mask_patch_size": 4, **kwargs})


def official_file(model, path):
    """A checkpoint of microsoft/SimMIM with formula weights, for a task of the same sizes."""
    shapes = {}
    for name, value in model.state_dict().items():
        if name.startswith("backbone."):
            shapes[name.replace("backbone.", "encoder.")] = value.shape
    shapes["encoder.mask_token"] = model.mask_token.shape
    shapes |= {f"decoder.0.{part}": getattr(model.decoder, part).shape for part in ("weight", "bias")}
    state = formula_parameters(shapes)
    torch.save({"model": state, "optimizer": {}, "epoch": 99}, path)
    return state


def from_golden(golden, folder, **task):
    cls = SwinTransformerV2 if "v2" in golden["source"] or golden["config"]["window_size"] == 12 else SwinTransformer
    make = lambda **more: SimMIM(cls(**golden["config"]), golden["mask_patch_size"], **task, **more)  # noqa: E731
    official_file(make(), folder / "simmim.pth")
    return make(weights=str(folder / "simmim.pth")).eval()


@pytest.mark.parametrize("name", ["v1_192", "v1_small", "v2_192"])
def test_reconstruction_and_loss_equal_the_official_code(name, tmp_path):
    golden = load_golden(name, "simmim.json")
    size = golden["config"]["img_size"]
    images, patches = formula_input(size, size), golden["mask_patch_size"] // golden["config"]["patch_size"]
    cells = torch.tensor([[bit == "1" for bit in row] for row in golden["masks"]])
    cells = cells.view(2, size // golden["mask_patch_size"], -1)
    masks = cells.repeat_interleave(patches, 1).repeat_interleave(patches, 2)
    for variant, loss in golden["loss"].items():
        model = from_golden(golden, tmp_path, norm_target=None if variant == "plain" else 47)
        with torch.no_grad():
            found = model(images, masks)
            assert model.compute_loss(images, masks, found).mean().item() == pytest.approx(loss, abs=1e-5)
        expected = golden["reconstruction"]
        assert list(found.shape) == expected["shape"]
        assert found.flatten()[:: expected["every"]].tolist() == pytest.approx(expected["values"], abs=1e-5)
        assert found.square().mean().item() == pytest.approx(expected["mean_square"], rel=1e-5)


def test_official_number_of_masked_blocks():
    golden = load_golden("v1_192", "simmim.json")
    model = small(mask_patch_size=32)
    masks = model.masks(torch.empty(1, 3, 192, 192), torch.arange(1), 0)
    assert masks.sum().item() == sum(map(int, golden["masks"][0])) * 16 * 16


def test_masked_pixels_do_not_reach_the_network():
    model = small().eval()
    images = torch.randn(2, 3, 16, 16)
    masks = model.masks(images, torch.tensor([3, 4]), 0)
    pixels = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    other = images.where(~pixels, torch.randn_like(images))
    assert torch.equal(model(images, masks), model(other, masks))
    assert not torch.equal(model(images, masks), model(images + 0.1 * ~pixels, masks))


def test_local_normalisation_equals_the_statistics_of_each_neighbourhood():
    images = torch.randn(1, 2, 9, 7)
    found = normalize_locally(images, 5)
    for y, x in ((0, 0), (4, 3), (8, 5), (2, 6)):
        near = images[0, :, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].flatten(1)
        expected = (images[0, :, y, x] - near.mean(1)) / (near.var(1) + 1e-6).sqrt()
        torch.testing.assert_close(found[0, :, y, x], expected)


class Recorded(SimMIM):
    """Keeps the masks of training by epoch and index."""

    def masks(self, images, indices, epoch):
        masks = super().masks(images, indices, epoch)
        if self.training:
            self.seen |= {(epoch, i): mask for i, mask in zip(indices.tolist(), masks, strict=True)}
        return masks


def fit(make_trainer, model, batch_size, **limits):
    model.seen = {}
    data = Digits(image_size=16, batch_size=batch_size, num_workers=0, crop="none", hflip=0.0, seed=5)
    trainer = make_trainer(**limits)
    (before,) = trainer.validate(model, data, verbose=False)
    trainer.fit(model, datamodule=data)
    return before["val/loss"], trainer.callback_metrics["val/loss"].item()


def test_epoch_on_digits_lowers_the_loss_with_masks_by_seed_epoch_and_index(make_trainer):
    small = {**SMALL, "embed_dim": 16, "init_std": 0.2, "drop_path_rate": 0.0}
    model = Recorded(SwinTransformer(**small), mask_patch_size=4, lr=5e-3)
    before, after = fit(make_trainer, model, 32)
    assert len(model.seen) == 1248 and after < 0.9 * before
    # another batch size, and other images around: the same masks; another epoch: others
    other = Recorded(SwinTransformer(**small), mask_patch_size=4)
    fit(make_trainer, other, 8, max_epochs=2, limit_train_batches=2, limit_val_batches=1)
    again = [key for key in other.seen if key in model.seen]
    assert len(again) >= 15 and all(torch.equal(model.seen[key], other.seen[key]) for key in again)
    later = [index for epoch, index in other.seen if epoch == 1 and (0, index) in model.seen]
    assert later and not any(torch.equal(model.seen[0, index], other.seen[1, index]) for index in later)


def test_validation_loss_is_the_mean_over_all_images_and_counts_no_padding(make_trainer):
    model = small().eval()
    images, index = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, -1])
    with torch.no_grad():
        masks = model.masks(images, index, 0)
        expected = model.compute_loss(images, masks, model(images, masks))[:5].mean().item()
    batches = [{"image": images[i], "target": torch.full((len(images[i]),), -1), "index": index[i]}
               for i in (slice(0, 4), slice(4, 6))]  # fmt: skip
    (logged,) = make_trainer().validate(model, DataLoader(batches, batch_size=None), verbose=False)
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_mask_token_has_no_weight_decay_and_the_layer_of_the_patch_embedding(make_trainer):
    model = small(layer_decay=0.5, weight_decay=0.3, lr=0.1)
    data = {"image": torch.randn(2, 3, 16, 16), "target": torch.zeros(2).long(), "index": torch.arange(2)}
    trainer = make_trainer()
    trainer.fit(model, DataLoader([data], batch_size=None))
    rates = {
        id(p): (g["initial_lr"], g["weight_decay"]) for g in trainer.optimizers[0].param_groups for p in g["params"]
    }
    assert rates[id(model.mask_token)] == pytest.approx((0.1 * 0.5**3, 0.0))
    assert rates[id(model.backbone.patch_embed.proj.weight)] == pytest.approx((0.1 * 0.5**3, 0.3))
    assert rates[id(model.decoder.weight)] == pytest.approx((0.1, 0.3))


@pytest.mark.parametrize("cls", [SwinTransformer, SwinTransformerV2])
def test_classifier_starts_from_the_backbone_of_a_checkpoint(cls, make_trainer, tmp_path, caplog):
    model = small(cls)
    torch.nn.init.normal_(model.backbone.norm.weight)
    trainer = make_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found = SwinClassifier(cls(**SMALL), num_classes=10, weights=str(tmp_path / "last.ckpt"))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(found.backbone.state_dict()[name], value), name
    assert "no classifier in checkpoint" in caplog.text
    # and SimMIM goes on from it
    again = small(cls, weights=str(tmp_path / "last.ckpt"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_weights_without_decoder_and_files_of_the_official_code(tmp_path, caplog):
    state = official_file(small(), tmp_path / "simmim.pth")
    found = SwinClassifier(SwinTransformer(**SMALL), num_classes=10, weights=str(tmp_path / "simmim.pth"))
    assert torch.equal(found.backbone.norm.weight, state["encoder.norm.weight"])
    torch.save({"model": {k.removeprefix("encoder."): v for k, v in state.items() if "decoder" not in k and
                          "mask_token" not in k}}, tmp_path / "backbone.pth")  # fmt: skip
    model = small(weights=str(tmp_path / "backbone.pth"))
    assert torch.equal(model.backbone.norm.weight, state["encoder.norm.weight"])
    assert "no mask token and decoder in checkpoint; initialised new ones" in caplog.text
    del state["decoder.0.bias"]
    torch.save({"model": state}, tmp_path / "half.pth")
    with pytest.raises(UserError, match=r"decoder\.0\.bias"):
        small(weights=str(tmp_path / "half.pth"))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"mask_patch_size": 5}, "model.mask_patch_size 5 must be a multiple of the backbone's patch size 2"),
     ({"mask_ratio": 1.0}, "mask_ratio"),
     ({"norm_target": 4}, "model.norm_target 4 must be odd"),
     ({"backbone": torch.nn.Linear(2, 2)}, "SimMIM needs a SwinTransformer or SwinTransformerV2, got Linear")],
)  # fmt: skip
def test_options_that_cannot_be_meant(kwargs, words):
    with pytest.raises(UserError, match=words):
        SimMIM(**{"backbone": SwinTransformer(**SMALL), "mask_patch_size": 4, **kwargs})


@pytest.mark.parametrize(("size", "words"), [(18, "model.mask_patch_size 8"), (24, "stride 16")])
def test_images_that_do_not_fit_the_blocks(size, words):
    backbone = SwinTransformer(**SMALL | {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)})
    with pytest.raises(UserError, match=words):
        SimMIM(backbone, mask_patch_size=8).masks(torch.empty(1, 3, size, size), torch.arange(1), 0)


def test_compiled_parts_are_those_that_are_called():
    model = small()
    called = []
    for module in model.compiled_modules():
        module.register_forward_hook(lambda module, *_: called.append(module))
    images = torch.randn(1, 3, 16, 16)
    model(images, model.masks(images, torch.arange(1), 0))
    assert called == model.compiled_modules()
    covered = {id(p) for module in model.compiled_modules() for p in module.parameters()}
    rest = [name for name, p in model.backbone.named_parameters() if id(p) not in covered]
    assert rest == ["norm.weight", "norm.bias"]


def test_bfloat16_loss_is_computed_in_float32():
    model = small()
    images = torch.randn(2, 3, 16, 16)
    masks = model.masks(images, torch.arange(2), 0)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.compute_loss(images, masks, model(images, masks))
    assert low.dtype == torch.float32
    assert low.tolist() == pytest.approx(model.compute_loss(images, masks, model(images, masks)).tolist(), rel=0.01)
    assert not math.isnan(low.sum().item())
