"""The training step never waits for its GPU, except where it logs."""

from contextlib import suppress

import pytest
import torch

from swin_lightning.callbacks import BestMetric, ProgressBar, TrainingMonitor
from swin_lightning.checkpointing import EMA, PerStepSeed
from swin_lightning.data import Digits
from swin_lightning.loggers import CSVLogger
from swin_lightning.models import SwinTransformer, SwinTransformerV2, swin
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.waits import META, Waits

SMALL = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "drop_path_rate": 0.5}
LOGGING = {  # learning rate and images/s as tensors; four values read by the logger, of which the bar shows two again
    "__to_tensor: literal": 2, "to_item: _local_scalar_dense": 4, "get_metrics: _local_scalar_dense": 2,
}  # fmt: skip


@pytest.mark.parametrize("backbone", [SwinTransformer, SwinTransformerV2])
def test_a_step_waits_only_where_it_logs(backbone, monkeypatch, tmp_path):
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator("cpu"))  # there is none of the meta device
    data = Digits(batch_size=4, num_workers=0, mixup=0.8, cutmix=1.0, mix_probability=0.7, random_erasing=0.5)
    model = SwinClassifier(backbone(**SMALL), 10, label_smoothing=0.1, warmup_epochs=1, layer_decay=0.9)
    waits = Waits()
    waits.fit(
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
    _, first, second, third, fourth, fifth, sixth, _, *validation, _ = waits.steps
    assert first == {"get_metrics: _local_scalar_dense": 1}  # the bar's first loss
    assert second == fourth == fifth == {}
    assert third == sixth == LOGGING
    assert validation == [{}, {}]


def test_the_fused_optimizer_and_clipping_read_nothing(make_trainer):
    model = SwinClassifier(SwinTransformer(**SMALL), 10)
    optimizer = model.configure_optimizers()["optimizer"]
    assert optimizer.defaults["fused"]
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for _ in range(2):
        with Waits(torch.device("cpu")) as waits:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        assert waits.steps == [{}]


def test_masks_are_made_once_a_stage_and_shift(monkeypatch):
    made = []
    monkeypatch.setattr(swin, "shifted_window_mask", lambda *args, **_: made.append(args))
    SwinTransformer(**SMALL | {"depths": (4, 2), "img_size": 64}).eval()(torch.randn(1, 3, 64, 64))
    shifts = [(size, shift) for size, _, shift in made]
    assert shifts == [((side, side), (shift, shift)) for side in (16, 8) for shift in (0, 2)]


@pytest.mark.parametrize(("waiting", "why"), [
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
def test_what_waits_is_seen(waiting, why):
    with Waits() as waits, suppress(NotImplementedError):  # there are no values to choose by
        waiting(torch.zeros(2, device=META))
    assert waits.steps == [{f"<lambda>: {why}": 1} if why else {}]
