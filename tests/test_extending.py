"""The examples of docs/extending.md, run as they stand there."""

import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from lightning import Callback

from swin_lightning import SwinClassifier
from swin_lightning.cli import main
from swin_lightning.models import swin_micro_patch4_window4_32
from tests.support.cli import DIGITS, ROOT, SHORT, metrics

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
COMMANDS = {text.split(" -c ")[-1].split()[0]: text for language, text in BLOCKS if language == "bash"}


@pytest.fixture(autouse=True)
def files():
    """The files of the page, in the working directory."""
    for language, text in BLOCKS:
        if language in ("python", "yaml"):
            Path(text.split()[1]).write_text(text)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A checkpoint of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("pretrained"))
        cli = main(["fit", "-c", DIGITS, *SHORT])
        return cli.run.last.resolve()


def run(name, *more):
    """The command of the page for a YAML file, shortened."""
    program, *arguments = shlex.split(COMMANDS[name])
    assert program == "swin-lightning"
    short = ["--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1", "--test_after_fit=false"]
    return main([*arguments, *short, *more])


def groups(cli):
    return [(group["initial_lr"], group["weight_decay"]) for group in cli.trainer.optimizers[0].param_groups]


def test_page_has_a_command_for_every_experiment():
    names = {text.split()[1] for language, text in BLOCKS if language == "yaml"}
    assert set(COMMANDS) == names - {"tensorboard.yaml"}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought Muon")
def test_muon():
    cli = run("muon.yaml", "--trainer.max_epochs=1")
    names = [group["name"] for group in cli.trainer.optimizers[0].param_groups]
    assert names == ["decay_muon", "decay", "no_decay"]
    assert [group.get("fused") for group in cli.trainer.optimizers[0].param_groups] == [None, True, True]
    assert all(math.isfinite(loss) for loss in metrics(cli.run_dir, "train/loss"))


def test_sgd_with_step_schedule():
    cli = run("sgd.yaml", "--trainer.max_epochs=5")
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.9, True)}
    assert groups(cli) == [(0.05, 1e-4), (0.05, 0.0)]
    assert metrics(cli.run_dir, "train/lr") == pytest.approx([0.05] * 6 + [0.005] * 6 + [0.0005] * 3)


def test_own_optimizer_with_a_schedule_of_torch():
    cli = run("sign_sgd.yaml", "--trainer.max_epochs=3", "--model.warmup_epochs=1", "--model.warmup_lr=1e-4")
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer).__name__ == "SignSGD"
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert groups(cli) == [(1e-3, 0.05), (1e-3, 0.0)]
    assert metrics(cli.run_dir, "train/lr") == pytest.approx([1e-4, 4e-4, 7e-4] + [5e-4] * 3 + [2.5e-4] * 3)


def test_backbone_finetuning():
    cli = run("finetuning.yaml", "--trainer.max_epochs=2", "--model.warmup_epochs=0", "--model.lr_schedule=constant")
    found = [(group["lr"], group["weight_decay"]) for group in cli.trainer.optimizers[0].param_groups]
    assert found == [(2e-3, 0.05), (2e-3, 0.0), (pytest.approx(2e-4), 0.05)]
    assert all(parameter.requires_grad for parameter in cli.model.parameters())


def test_focal_loss_with_class_weights():
    cli = run("focal.yaml", "--trainer.max_epochs=1")
    loss = cli.model.loss
    assert (type(loss).__name__, loss.gamma, loss.weight.tolist()) == ("FocalLoss", 1.5, [1.0] * 8 + [2.0] * 2)
    logits, targets = torch.randn(6, 10), torch.tensor([0, 1, 2, 3, 8, 9])
    p = logits.softmax(1)[torch.arange(6), targets]
    expected = (-((1 - p) ** 1.5) * p.log() * loss.weight[targets]).mean()
    torch.testing.assert_close(cli.model.train().compute_loss(logits, targets), expected)
    assert 0 < metrics(cli.run_dir, "val/loss")[0] < 3


def test_macro_f1_as_monitor():
    cli = run("f1.yaml", "--trainer.max_epochs=2")
    f1 = metrics(cli.run_dir, "val/f1")
    assert len(f1) == 2 and 0 < max(f1) < 1
    assert cli.checkpoint.monitor == "val/f1"
    assert float(cli.checkpoint.best_model_score) == pytest.approx(max(f1))
    recall = [metrics(cli.run_dir, f"val/recall/{digit}") for digit in range(10)]
    counts = torch.bincount(torch.tensor([int(t) for t in cli.datamodule.sources["val"].labels]), minlength=10)
    for epoch, accuracy in enumerate(metrics(cli.run_dir, "val/acc")):  # accuracy is the mean recall by class sizes
        weighted = sum(r[epoch] * n for r, n in zip(recall, counts.tolist(), strict=True)) / 180
        assert weighted == pytest.approx(accuracy)
    assert 0.4 < metrics(cli.run_dir, "val/auroc")[-1] <= 1


def test_linear_probe_changes_the_head_alone(pretrained):
    Path("pretrained.ckpt").symlink_to(pretrained)
    cli = run("probe.yaml", "--trainer.max_epochs=1", "--model.warmup_epochs=0", "--model.backbone.drop_path_rate=0.5")
    before = torch.load(pretrained, weights_only=True)["state_dict"]
    changed = {name for name, value in cli.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert groups(cli) == [(2e-3, 0.05), (2e-3, 0.0)]
    assert cli.model.head.training and not any(module.training for module in cli.model.backbone.modules())


def test_distillation_as_a_subclass(pretrained):
    Path("pretrained.ckpt").symlink_to(pretrained)
    cli = run("distilled.yaml", "--trainer.max_epochs=1")
    assert (type(cli.model).__name__, cli.model.alpha, cli.model.num_classes) == ("Distilled", 0.7, 10)
    teacher = torch.load(pretrained, weights_only=True)["state_dict"]
    for name, value in cli.model.teacher.state_dict().items():
        assert torch.equal(value, teacher[name]), name
    assert not any(module.training for module in cli.model.teacher.modules())
    trained = {id(p) for group in cli.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in cli.model.named_parameters() if not name.startswith("teacher.")}


def test_contrastive_task_learns_and_its_backbone_is_loaded():
    cli = run("contrastive.yaml", "--trainer.max_epochs=1", "--trainer.limit_train_batches=12", "--data.batch_size=32")
    losses = metrics(cli.run_dir, "train/loss")
    assert losses[0] > 0.9 * math.log(63)  # one of 63 other views
    assert min(losses[-3:]) < 0.92 * losses[0]
    assert len(metrics(cli.run_dir, "val/loss")) == 1
    batch = next(iter(cli.datamodule.train_dataloader()))
    first, second = batch["image"].chunk(2, dim=2)
    assert first.shape == (32, 3, 32, 32) and not torch.equal(first, second)
    model = SwinClassifier(swin_micro_patch4_window4_32(), num_classes=10, weights=str(cli.run.last))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, cli.model.backbone.state_dict()[name]), name


def test_module_with_two_optimizers():
    cli = run("two_optimizers.yaml", "--trainer.max_epochs=2")
    assert [type(optimizer).__name__ for optimizer in cli.trainer.optimizers] == ["AdamW", "SGD"]
    assert [optimizer.param_groups[0]["lr"] for optimizer in cli.trainer.optimizers] == [1e-3, 0.02]
    assert cli.trainer.global_step == 12  # two optimizers, 3 batches, 2 epochs
    assert float(cli.checkpoint.best_model_score) == pytest.approx(min(metrics(cli.run_dir, "val/loss")))


def test_own_data_module_and_backbone():
    cli = main(["fit", "-c", "stripes.yaml"])
    assert (type(cli.datamodule).__name__, type(cli.model.backbone).__name__) == ("Stripes", "ConvNet")
    assert cli.model.class_names == ["horizontal", "vertical"]
    assert metrics(cli.run_dir, "test/acc")[0] > 0.95


class Buggy(Callback):
    def on_train_batch_end(self, *_):
        assert 1 == 2, "a bug"


def test_bug_keeps_its_traceback_and_type():
    with pytest.raises(AssertionError, match="a bug"):
        main(["fit", "-c", DIGITS, *SHORT, "--trainer.callbacks+=tests.test_extending.Buggy"])
