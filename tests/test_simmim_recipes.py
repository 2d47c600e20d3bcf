"""The SimMIM experiments equal the official recipes: numbers of the objects that their YAML files build."""

import pytest
import torch

from tests.support.cli import EXPERIMENTS
from tests.support.recipes import built, check_parameter_groups, schedule_factor

BATCH = 2048  # the official rates are for 512
STEPS = 1_281_167 // BATCH
# Source: configs/ of microsoft/SimMIM d3e29bc and of microsoft/Swin-Transformer f82860b
# experiment: peak, warm-up start, rates at the end of some epochs, window, drop path, normalised target
PRETRAINING = {
    "swin_base_patch4_window6_192_100ep": (2e-4, 1e-6, {100: 1e-5}, 6, 0.0, None),
    "swin_base_patch4_window6_192_800ep": (1e-4, 5e-7, {699: 1e-4, 701: 1e-5, 800: 1e-5}, 6, 0.0, None),
    "swinv2_base_patch4_window12_192_800ep": (1e-4, 5e-7, {699: 1e-4, 701: 1e-5, 800: 1e-5}, 12, 0.1, 47),
}
# experiment: image size, shorter side before the crop, window, layer decay, published accuracy
FINE_TUNING = {
    "swin_base_patch4_window6_192_ft_simmim_100ep": (192, 219, 6, 0.9, "82.8"),
    "swin_base_patch4_window7_224_ft_simmim_100ep": (224, 256, 7, 0.9, "83.5"),
    "swin_base_patch4_window7_224_ft_simmim_800ep": (224, 256, 7, 0.8, "84.0"),
    "swinv2_base_patch4_window14_224_ft_simmim_800ep": (224, 256, 14, 0.75, "85.04"),
}
DEPTHS = [2, 2, 18, 2]


def check_backbone(backbone, window, drop_path):
    blocks = [block for layer in backbone.layers for block in layer.blocks]
    assert [len(layer.blocks) for layer in backbone.layers] == DEPTHS
    assert {layer.window_size for layer in backbone.layers} == {(window, window)}
    assert [layer.blocks[0].attn.num_heads for layer in backbone.layers] == [4, 8, 16, 32]
    assert [layer.blocks[0].norm1.normalized_shape for layer in backbone.layers] == [(128 << i,) for i in range(4)]
    assert [block.drop_path.p for block in blocks] == pytest.approx([drop_path * i / 23 for i in range(24)])


def test_every_experiment_is_tested():
    names = {path.stem.removeprefix("imagenet_") for path in EXPERIMENTS.glob("imagenet_*simmim*.yaml")}
    assert names == {*(f"simmim_{name}" for name in PRETRAINING), *FINE_TUNING}


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining(name):
    peak, start, later, window, drop_path, norm_target = PRETRAINING[name]
    config, data, model = built(f"simmim_{name}")
    check_backbone(model.backbone, window, drop_path)
    assert (model.mask_patch_size, model.mask_ratio, model.norm_target) == (32, 0.6, norm_target)
    assert model.stride == 32
    epochs = int(name.split("_")[-1].removesuffix("ep"))
    optimizer, factor = schedule_factor(config, model, STEPS)
    assert config.trainer.max_epochs == epochs and config.trainer.gradient_clip_val == 5.0
    scale = BATCH / 512
    assert all(group["initial_lr"] == pytest.approx(scale * peak) for group in optimizer.param_groups)
    rates = {0: start, 5: (start + peak) / 2, 10: peak, **later}
    assert {epoch: scale * peak * factor(epoch * STEPS) for epoch in rates} == pytest.approx(
        {epoch: scale * rate for epoch, rate in rates.items()}
    )
    check_parameter_groups(model, optimizer, 0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(model.mask_token) not in decayed and id(model.decoder.weight) in decayed
    transform = data.train_transform()
    crop = transform.crop
    assert (crop.image_size, crop.scale, crop.ratio) == (192, (0.67, 1.0), (3 / 4, 4 / 3))
    assert transform.hflip == 0.5 and not transform.compose.transforms
    assert data.batch_size == BATCH and not (data.random_erasing or data.mixing.mixup or data.mixing.cutmix)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning(name):
    size, side, window, layer_decay, accuracy = FINE_TUNING[name]
    config, data, model = built(name)
    check_backbone(model.backbone, window, 0.1)
    optimizer, factor = schedule_factor(config, model, STEPS)
    assert config.trainer.max_epochs == 100 and config.trainer.gradient_clip_val == 5.0
    scale = BATCH / 512
    rates = {0: 2.5e-7, 10: (2.5e-7 + 1.25e-3) / 2, 20: 1.25e-3, 60: (1.25e-3 + 2.5e-7) / 2, 100: 2.5e-7}
    assert {epoch: scale * 1.25e-3 * factor(epoch * STEPS) for epoch in rates} == pytest.approx(
        {epoch: scale * rate for epoch, rate in rates.items()}
    )
    check_parameter_groups(model, optimizer, 0.05)
    rate = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    # level of each part in the official optimizer: patch embedding 0, block i of all blocks i + 1, norm and head 25
    levels = {
        "backbone.patch_embed.proj.weight": 0,
        "backbone.layers.0.blocks.0.attn.qkv.weight": 1,
        "backbone.layers.1.downsample.reduction.weight": 4,
        "backbone.layers.2.blocks.0.mlp.fc1.bias": 5,
        "backbone.layers.2.downsample.norm.weight": 22,
        "backbone.layers.3.blocks.1.norm2.weight": 24,
        "backbone.norm.weight": 25,
        "head.weight": 25,
    }
    for key, level in levels.items():
        assert rate[id(named[key])] == pytest.approx(scale * 1.25e-3 * layer_decay ** (25 - level)), key
    mixing, (augment,) = data.mixing, data.train_transform().compose.transforms
    assert (mixing.mixup, mixing.cutmix, mixing.probability, mixing.switch) == (0.8, 1.0, 1.0, 0.5)
    assert (augment.magnitude, augment.magnitude_std, data.random_erasing, model.label_smoothing) == (9, 0.5, 0.25, 0.1)
    assert (data.batch_size, data.image_size) == (BATCH, size)
    assert data.eval_protocol() == f"resize {side}, crop {size}"
    assert f"# Expected:  {accuracy} % top-1 is published" in (EXPERIMENTS / f"imagenet_{name}.yaml").read_text()
    if "swinv2" in name:
        trained = [layer.blocks[0].attn.trained_window for layer in model.backbone.layers]
        assert trained == [(12, 12), (12, 12), (12, 12), (6, 6)]
    else:
        assert model.bias_resize == "geometric"
    assert isinstance(model.head, torch.nn.Linear) and model.head.out_features == 1000
