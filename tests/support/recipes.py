"""Experiments as objects: their optimizers and schedules, without data and without values of parameters."""

from functools import cache
from types import SimpleNamespace

import torch

from swin_lightning.config import instantiate, load
from tests.support.cli import EXPERIMENTS

NO_DECAY = (".bias", "q_bias", "v_bias", "relative_position_bias_table", "logit_scale", "mask_token")


@cache
def built(name):
    """Configuration, data module and model of an ImageNet experiment, on the meta device: shapes without values."""
    config = load(["-c", str(EXPERIMENTS / f"imagenet_{name}.yaml")])
    with torch.device("meta"):
        return config, *instantiate(config)


def schedule_factor(config, model, steps):
    """The optimizer of an experiment and its learning-rate factor by step, for so many steps per epoch."""
    model.trainer = SimpleNamespace(
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        num_training_batches=steps,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        callbacks=[],
    )
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
    assert schedule["interval"] == "step" and isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
    return optimizer, schedule["scheduler"].factor


def check_parameter_groups(model, optimizer, weight_decay):
    """Every parameter is in one group, with weight decay or without it as published."""
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        free = key.endswith(NO_DECAY) or "norm" in key or "cpb_mlp" in key
        assert decay.pop(id(parameter)) == (0 if free else weight_decay), key
    assert not decay
