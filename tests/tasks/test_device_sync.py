"""A training step does not synchronise host and device, except at the steps that are logged."""

from contextlib import suppress

import pytest
import torch

from swin_lightning.callbacks import BestMetric, ProgressBar, TrainingMonitor
from swin_lightning.checkpointing import PerStepSeed
from swin_lightning.data import Digits
from swin_lightning.ema import EMA
from swin_lightning.loggers import CSVLogger
from swin_lightning.models import SwinTransformer, SwinTransformerV2, swin
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.device_sync import META, SyncCounter

SMALL = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "drop_path_rate": 0.5}
# learning rate and images/s become tensors; the logger reads four values, two of which the progress bar reads too
LOGGED_STEP = {
    "__to_tensor: literal": 2, "to_item: _local_scalar_dense": 4, "get_metrics: _local_scalar_dense": 2,
}  # fmt: skip


@pytest.mark.parametrize("backbone", [SwinTransformer, pytest.param(SwinTransformerV2, marks=pytest.mark.slow)])
def test_training_synchronises_only_at_logged_steps(backbone, monkeypatch, tmp_path):
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator("cpu"))  # the meta device has none
    data = Digits(batch_size=4, num_workers=0, mixup=0.8, cutmix=1.0, mix_probability=0.7, random_erasing=0.5)
    model = SwinClassifier(backbone(**SMALL), 10, label_smoothing=0.1, warmup_epochs=1, layer_decay=0.9)
    counter = SyncCounter()
    counter.fit(
        model,
        data,
        [PerStepSeed(), TrainingMonitor(), BestMetric(), EMA(0.9), ProgressBar()],
        max_epochs=1,
        limit_train_batches=7,
        limit_val_batches=3,
        num_sanity_val_steps=0,
        log_every_n_steps=3,
        gradient_clip_val=5.0,
        enable_checkpointing=False,
        logger=CSVLogger(str(tmp_path)),
    )
    _, first, second, third, fourth, fifth, sixth, _, *validation, _ = counter.steps
    assert first == {"get_metrics: _local_scalar_dense": 1}  # the progress bar shows the first loss
    assert second == fourth == fifth == {}
    assert third == sixth == LOGGED_STEP
    assert validation == [{}, {}]


def test_fused_optimizer_and_gradient_clipping_do_not_synchronise():
    model = SwinClassifier(SwinTransformer(**SMALL), 10)
    optimizer = model.configure_optimizers()["optimizer"]
    assert all(group["fused"] for group in optimizer.param_groups)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for _ in range(2):
        with SyncCounter(torch.device("cpu")) as counter:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        assert counter.steps == [{}]


def test_attention_masks_are_computed_once_per_stage_and_shift(monkeypatch):
    computed = []
    monkeypatch.setattr(swin, "shifted_window_mask", lambda *args, **_: computed.append(args))
    SwinTransformer(**SMALL | {"depths": (4, 2), "img_size": 64}).eval()(torch.randn(1, 3, 64, 64))
    shifts = [(size, shift) for size, _, shift, *_ in computed]
    assert shifts == [((side, side), (shift, shift)) for side in (16, 8) for shift in (0, 2)]


@pytest.mark.parametrize(("operation", "operator"), [
    (lambda x: float(x.sum()), "_local_scalar_dense"),
    (lambda x: bool((x == x).all()), "_local_scalar_dense"),
    (lambda x: x[x > 0], "index"),
    (lambda x: x.nonzero(), "nonzero"),
    (lambda x: x.cpu(), "meta to cpu"),
    (lambda x: x.to("cpu", non_blocking=True), "meta to cpu"),
    (lambda x: torch.zeros(2).to(META), "cpu to meta"),
    (lambda x: x.copy_(torch.zeros(2)), "cpu to meta"),
    (lambda x: torch.tensor(1.0, device=META), "literal"),
    (lambda x: torch.zeros(2).to(META, non_blocking=True), None),
    (lambda x: x[torch.zeros(1, dtype=torch.long, device=META)], None),
])  # fmt: skip
def test_sync_counter_detects_synchronising_operators(operation, operator):
    with SyncCounter() as counter, suppress(NotImplementedError):  # shapes that depend on values are unknown
        operation(torch.zeros(2, device=META))
    assert counter.steps == [{f"<lambda>: {operator}": 1} if operator else {}]
