"""Every ImageNet experiment equals the published recipe: numbers of the objects that its YAML builds."""

import numpy as np
import pytest
import torch
from PIL import Image

from swin_lightning.data.transforms import RandAugment, RandomResizedCrop
from swin_lightning.models.registry import compare_to_published, list_models, model_info
from tests.support.cli import EXPERIMENTS
from tests.support.recipes import built, check_parameter_groups, schedule_factor

# Source: microsoft/Swin-Transformer, config.py, configs/ and get_started.md. All rates are for a batch of 512.
# lr, lr at the end, lr at the start, epochs, warm-up epochs, weight decay
SCRATCH = (5e-4, 5e-6, 5e-7, 300, 20, 0.05)
FINE_TUNE = (2e-5, 2e-7, 2e-8, 30, 5, 1e-8)
BATCH = 1024
SQUASH = None
# experiment: schedule, drop path, image size, shorter side before the centre crop, blocks
RECIPES = {
    "swin_tiny_patch4_window7_224": (SCRATCH, 0.2, 224, 256, 12),
    "swin_small_patch4_window7_224": (SCRATCH, 0.3, 224, 256, 24),
    "swin_base_patch4_window7_224": (SCRATCH, 0.5, 224, 256, 24),
    "swin_base_patch4_window12_384_ft_1k": (FINE_TUNE, 0.5, 384, SQUASH, 24),
    "swin_tiny_patch4_window7_224_ft_22k": (FINE_TUNE, 0.1, 224, 256, 12),
    "swin_small_patch4_window7_224_ft_22k": (FINE_TUNE, 0.2, 224, 256, 24),
    "swin_base_patch4_window7_224_ft_22k": (FINE_TUNE, 0.2, 224, 256, 24),
    "swin_large_patch4_window7_224_ft_22k": (FINE_TUNE, 0.2, 224, 256, 24),
    "swin_base_patch4_window12_384_ft_22k": (FINE_TUNE, 0.2, 384, SQUASH, 24),
    "swin_large_patch4_window12_384_ft_22k": (FINE_TUNE, 0.2, 384, SQUASH, 24),
    "swinv2_tiny_patch4_window8_256": (SCRATCH, 0.2, 256, 292, 12),
    "swinv2_small_patch4_window8_256": (SCRATCH, 0.3, 256, 292, 24),
    "swinv2_base_patch4_window8_256": (SCRATCH, 0.5, 256, 292, 24),
    "swinv2_tiny_patch4_window16_256": (SCRATCH, 0.2, 256, 292, 12),
    "swinv2_small_patch4_window16_256": (SCRATCH, 0.3, 256, 292, 24),
    "swinv2_base_patch4_window16_256": (SCRATCH, 0.5, 256, 292, 24),
    "swinv2_base_patch4_window12to16_192to256_ft_22k": (FINE_TUNE, 0.2, 256, 292, 24),
    "swinv2_large_patch4_window12to16_192to256_ft_22k": (FINE_TUNE, 0.2, 256, 292, 24),
    "swinv2_base_patch4_window12to24_192to384_ft_22k": (FINE_TUNE, 0.2, 384, SQUASH, 24),
    "swinv2_large_patch4_window12to24_192to384_ft_22k": (FINE_TUNE, 0.2, 384, SQUASH, 24),
}
FILES = [path for path in EXPERIMENTS.glob("imagenet_*.yaml") if "simmim" not in path.stem]  # see test_simmim_recipes
STEPS = 1_281_167 // BATCH  # of an epoch of the training set


def test_there_is_one_experiment_per_published_result():
    assert {f"imagenet_{name}" for name in RECIPES} == {path.stem for path in FILES}
    # and there is one for every published result
    published = [model for model in map(model_info, list_models()) if model.published]
    lines = [f"{model.name}{'_ft_22k' * (result.pretraining == 'ImageNet-22K')}" for model in published
             for result in model.published.results]  # fmt: skip
    assert sorted(lines) == sorted(name.removesuffix("_ft_1k") for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rate_and_weight_decay_of_every_parameter(name):
    (lr, end, start, epochs, warmup, weight_decay), *_ = RECIPES[name]
    (config, _, model), scale = built(name), BATCH / 512
    trainer = config.trainer
    optimizer, factor = schedule_factor(config, model, STEPS)
    assert trainer.max_epochs == epochs and trainer.max_steps == -1
    for group in optimizer.param_groups:
        assert group["initial_lr"] == pytest.approx(scale * lr)
        rates = [group["initial_lr"] * factor(step) for step in range(0, epochs * STEPS, STEPS)]
        assert group["lr"] == rates[0] == pytest.approx(scale * start)
        assert rates[warmup] == max(rates) == pytest.approx(scale * lr)
        assert rates[warmup // 5] == pytest.approx(scale * (start + (lr - start) / 5))  # linear
        middle = group["initial_lr"] * factor((epochs + warmup) * STEPS // 2)  # halfway down the cosine
        assert middle == pytest.approx(scale * (lr + end) / 2, rel=1e-3)
        assert group["initial_lr"] * factor(epochs * STEPS - 1) == pytest.approx(scale * end, rel=1e-6)
    check_parameter_groups(model, optimizer, weight_decay)


@pytest.mark.parametrize("name", RECIPES)
def test_drop_path_of_every_block(name):
    _, drop_path, *_, blocks = RECIPES[name]
    *_, model = built(name)
    rates = [block.drop_path.p for layer in model.backbone.layers for block in layer.blocks]
    assert rates == pytest.approx([drop_path * i / (blocks - 1) for i in range(blocks)])
    assert model.num_classes == 1000 and model.head.out_features == 1000
    # fine-tuning from ImageNet-22K keeps the rows of the 1000 classes
    assert model.hparams["head_rows"] == ("imagenet22k" if name.endswith("_ft_22k") else None)
    # no other dropout
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} <= {0.0}
    assert {block.attn.attn_drop for layer in model.backbone.layers for block in layer.blocks} == {0.0}


@pytest.mark.parametrize("name", RECIPES)
def test_batch_clipping_and_augmentation(name):
    _, _, size, *_ = RECIPES[name]
    config, data, model = built(name)
    trainer, mixing = config.trainer, data.mixing
    assert (data.batch_size, trainer.accumulate_grad_batches) == (BATCH, 1)
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (5.0, None)  # None is the norm
    assert model.label_smoothing == 0.1
    assert (mixing.mixup, mixing.cutmix, mixing.probability, mixing.switch) == (0.8, 1.0, 1.0, 0.5)
    assert data.random_erasing == 0.25
    transform = data.train_transform()
    crop, (augment,) = transform.crop, transform.compose.transforms
    assert isinstance(crop, RandomResizedCrop) and isinstance(augment, RandAugment)
    assert (crop.image_size, crop.scale, crop.ratio) == (size, (0.08, 1.0), (3 / 4, 4 / 3))
    assert transform.hflip == 0.5
    assert (augment.magnitude, augment.magnitude_std, augment.num_layers, augment.op_probability) == (9, 0.5, 2, 0.5)
    assert augment.fill == (124, 116, 104)
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", RECIPES)
def test_evaluation_crops_as_published(name):
    _, _, size, side, _ = RECIPES[name]
    _, data, _ = built(name)
    pixels = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    resized = (size, size) if side is SQUASH else (int(side * 400 / 300), side)
    expected = Image.fromarray(pixels).resize(resized, Image.Resampling.BICUBIC)
    left, top = (round((length - size) / 2) for length in expected.size)
    expected = expected.crop((left, top, left + size, top + size))
    assert np.array_equal(data.eval_transform()(pixels, (0, 0, 0)), np.asarray(expected))


@pytest.mark.parametrize("name", RECIPES)
def test_header_states_the_published_accuracy_and_protocol(name):
    config, data, _ = built(name)
    backbone, protocol = config.model.init_args.backbone.class_path, data.eval_protocol()
    measured, theirs = compare_to_published(backbone, f"imagenet_{name}", 0.5, 1.0, protocol).splitlines()
    assert measured == f"measured   top-1 50.0  top-5 100.0  {protocol}"
    assert theirs.endswith(f"{'ImageNet-22K, then 1K' if '22k' in name else 'ImageNet-1K'}; {protocol}")
    top1, top5 = theirs.split()[2:5:2]
    header = (EXPERIMENTS / f"imagenet_{name}.yaml").read_text()
    assert f"{top1} % top-1, {top5} % top-5 are published" in header
    assert "Not run yet by this project" in header
    assert ("--model.weights" in header) == ("_ft_" in name)


def test_no_published_accuracy_for_own_models():
    for path in ("swin_lightning.models.SwinTransformer", "swin_lightning.models.swin_micro_patch4_window4_32",
                 "mine.swin_tiny_patch4_window7_224", ""):  # fmt: skip
        assert compare_to_published(path, "mine", 0.5, 1.0, "whole") is None
