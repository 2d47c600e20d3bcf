"""Strategies: FSDP2 against DDP and one process, checkpoints across strategies, refused strategies, torchrun."""

import csv
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from swin_lightning import SwinClassifier
from swin_lightning.checkpoint_io import AtomicCheckpointIO
from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer
from swin_lightning.strategies import FSDP2, check_strategy, full_tensor, repeated_blocks
from tests.support.cli import DIGITS, environment
from tests.support.ranks import fit, run_ranks, small_classifier
from tests.support.training import Scores, fit_scores, load

REFUSED = {
    "fsdp": "fsdp is not supported; use fsdp2",
    "deepspeed_stage_2": "deepspeed_stage_2 is not supported, since its checkpoints are folders; use fsdp2 or ddp",
    "xla": "xla is not supported; use auto, ddp or fsdp2 on GPUs or CPUs",
    "fast": "fast does not exist; choose auto, ddp, ddp_spawn, ddp_fork, ddp_notebook, single_device, fsdp2, or give a",
}


# of resumed runs; the command line ignores them as well
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


@pytest.mark.parametrize("name", REFUSED)
def test_strategy_that_cannot_work_is_refused(name):
    with pytest.raises(UserError, match=rf"^trainer\.strategy {REFUSED[name]}"):
        check_strategy(name)


def test_command_line_and_objects_are_checked(monkeypatch):
    with pytest.raises(UserError, match=r"^trainer\.strategy fsdp is not supported; use fsdp2"):
        main(["fit", "-c", DIGITS, "--trainer.strategy=fsdp", "--trainer.accelerator=cpu"])
    check_strategy(FSDP2())
    check_strategy("DDP")
    with pytest.raises(UserError, match=r"trainer.strategy ddp_notebook is for notebooks only; use ddp or ddp_spawn"):
        check_strategy("ddp_notebook")
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # an interactive session
    check_strategy("ddp_notebook")
    with pytest.raises(UserError, match=r"trainer\.strategy FSDPStrategy is not supported; use fsdp2"):
        check_strategy(FSDPStrategy())
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm true has no effect with fsdp2; use ddp"):
        check_strategy("fsdp2", sync_batchnorm=True)


def test_loss_scaling_is_refused_with_fsdp2():
    strategy = FSDP2()
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match=r"trainer\.precision 16-mixed: fsdp2 has no loss scaling; use bf16-mixed"):
        strategy.setup(None)


def test_task_is_sharded_by_fsdp2_only(tmp_path):
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
    with pytest.raises(UserError, match="ModelParallelStrategy: SwinClassifier is sharded by fsdp2; for another"):
        fit(tmp_path, strategy, steps=1, devices=1)


def test_module_without_configure_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"fsdp2: Scores must call swin_lightning\.strategies\.shard in its configure"):
        fit_scores(tmp_path, Scores(), strategy="fsdp2")


def test_scalar_parameter_is_refused(tmp_path):
    model = small_classifier()
    model.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="fsdp2 cannot shard the scalar temperature; make it a vector of 1"):
        fit(tmp_path, "fsdp2", steps=1, devices=1, model=model)


def test_blocks_are_found_in_any_backbone():
    swin = SwinTransformer(embed_dim=24, depths=[2, 3], num_heads=[2, 4])
    assert repeated_blocks(swin) == [block for stage in swin.layers for block in stage.blocks]

    def convolution(channels):
        return nn.Sequential(nn.Conv2d(channels, 8, 1), nn.ReLU())

    network = nn.Sequential(convolution(3), nn.Sequential(nn.Sequential(convolution(8), convolution(8))))
    inner = network[1][0]
    assert repeated_blocks(network) == [network[0], *inner]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []  # not composed


ONE = {"devices": 1, "batch_size": 16, "val_check_interval": 2, "limit_val_batches": 1}


def test_fsdp2_on_one_device_equals_single_device(tmp_path):
    (plain, _, model), (sharded, trainer, other) = (
        fit(tmp_path / name, name, steps=2, **ONE) for name in ("single_device", "fsdp2")
    )
    assert sharded.losses == pytest.approx(plain.losses, abs=1e-6) and len(plain.losses) == 2
    assert sharded.norms == pytest.approx(plain.norms, abs=1e-6) and len(plain.norms) == 1
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, full_tensor(b), atol=1e-6, rtol=0, msg=name)
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    assert isinstance(other, SwinClassifier) and trainer.strategy.distributed_sampler_kwargs == {
        "num_replicas": 1,
        "rank": 0,
    }
    a, b = (load(tmp_path / name / "last.ckpt") for name in ("single_device", "fsdp2"))
    assert a.keys() == b.keys()
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert a[key].keys() == b[key].keys()
        for name in a[key]:
            torch.testing.assert_close(a[key][name], b[key][name], atol=1e-6, rtol=0)
    # each resumes the other's checkpoint, with optimizer state and averages
    ends = [
        fit(tmp_path / f"{first}-{second}", second, 4, tmp_path / first / "last.ckpt", **ONE)[0].losses
        for first, second in (("single_device", "fsdp2"), ("fsdp2", "single_device"))
    ]
    assert ends[1] == pytest.approx(ends[0], abs=1e-6) and len(ends[0]) == 2


def test_interrupted_write_under_fsdp2_keeps_the_checkpoint(tmp_path, monkeypatch):
    fit(tmp_path, "fsdp2", steps=1, **ONE)
    before = (tmp_path / "last.ckpt").read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        fit(tmp_path, "fsdp2", 2, tmp_path / "last.ckpt", **ONE)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_optimizer_state_of_another_model_is_refused(tmp_path):
    fit(tmp_path, "single_device", steps=1, **ONE)
    model = small_classifier(freeze="backbone")
    with pytest.raises(UserError, match=r"the optimizer of the checkpoint has parameter groups of \[.*resume with the"):
        fit(tmp_path / "second", "fsdp2", 2, tmp_path / "last.ckpt", model=model, **ONE)


def largest(first, second):
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow  # eleven runs of two processes
def test_fsdp2_equals_ddp_on_two_ranks():
    run_ranks("tests.support.ranks", "compare")
    found = torch.load("results.pt", weights_only=True)
    ddp, fsdp2 = found["ddp"], found["fsdp2"]
    assert len(ddp["losses"]) == 20 and len(ddp["norms"]) == 19
    assert largest(ddp["losses"], fsdp2["losses"]) < 1e-5 and largest(ddp["norms"], fsdp2["norms"]) < 1e-5
    assert max(ddp["norms"]) > 0.5  # clipped
    assert ddp["val"] == pytest.approx(fsdp2["val"], abs=1e-5)
    for name, weight in ddp["weights"].items():
        torch.testing.assert_close(fsdp2["weights"][name], weight, atol=1e-5, rtol=0)
    # 10 more steps, of each from the other's checkpoint; and of one process
    for name in ("ddp-fsdp2", "fsdp2-ddp", "fsdp2-fsdp2"):
        assert len(found[name]["losses"]) == 10
        assert largest(found[name]["losses"], found["ddp-ddp"]["losses"]) < 1e-5
    alone = fit("alone", "auto", 30, "fsdp2/last.ckpt", devices=1)[0]
    assert largest(alone.losses, found["ddp-ddp"]["losses"]) < 1e-2  # stochastic depth depends on the rank
    model, ours = small_classifier(), load("fsdp2/best.ckpt")["state_dict"]
    model.load_state_dict(ours)
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow  # about 20 runs of two processes
def test_options_with_fsdp2_and_ddp_on_two_ranks():
    run_ranks("tests.support.ranks", "options", timeout=900)
    found = torch.load("results.pt", weights_only=True)
    for name, (ddp, fsdp2) in found.items():
        # weights of 8 bits are rounded differently where gradients are averaged before or after their sum
        assert largest(ddp["losses"], fsdp2["losses"]) < (1e-3 if name == "bf16-true" else 1e-5), name
        assert ddp["losses"][0] == pytest.approx(fsdp2["losses"][0], abs=1e-6), name
        assert ddp["val"] == pytest.approx(fsdp2["val"], abs=1e-5), name
        if name != "bf16-true":  # has 8 bits
            assert largest(ddp["norms"], fsdp2["norms"]) < 1e-5, name
    for strategy in (0, 1):
        assert found["gradient_checkpointing"][strategy]["losses"] == found["plain"][strategy]["losses"]


def rows(name):
    """metrics.csv of the only run of an experiment, without throughput; config.yaml exists once."""
    (run,) = Path("runs", name).iterdir()
    assert sorted(path.name for path in run.glob("config*")) == ["config.yaml"]
    assert (run / "checkpoints" / "best.ckpt").is_file()
    with (run / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v and "images_per_s" not in k} for row in csv.DictReader(file)]


def processes(*commands):
    """Run the command line in several processes at once."""
    started = [subprocess.Popen([sys.executable, *c], env=environment(), stderr=subprocess.PIPE) for c in commands]
    for process in started:
        error = process.communicate(timeout=200)[1]
        assert process.returncode == 0, error.decode()[-3000:]


SHORT = ["fit", "-c", DIGITS, "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.limit_train_batches=3",
         "--trainer.log_every_n_steps=1"]  # fmt: skip


@pytest.mark.slow  # nine processes
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_runs_of_ddp_spawn_and_fsdp2_equal_those_of_ddp(decay):
    for strategy in ("ddp", "ddp_spawn", "fsdp2"):
        options = [f"--experiment={strategy}", f"--trainer.strategy={strategy}", "--trainer.devices=2"]
        processes(["-m", "swin_lightning", *SHORT, *options, f"--ema.decay={decay}"])
    expected = rows("ddp")
    assert "test/acc" in expected[-1]
    for strategy in ("ddp_spawn", "fsdp2"):
        found = rows(strategy)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert a == pytest.approx(b, abs=1e-5), strategy


@pytest.mark.slow
def test_error_in_a_rank_of_ddp_spawn_is_one_line():
    command = [sys.executable, "-m", "swin_lightning", *SHORT, "--trainer.strategy=ddp_spawn", "--trainer.devices=2"]
    done = subprocess.run([*command, "--data.batch_size=33"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: data.batch_size 33 is the global batch size")


@pytest.fixture
def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.mark.slow  # two launchers, as on two machines
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_nodes_by_torchrun_equal_one(strategy, free_port):
    nodes = ["--nnodes=2", "--nproc-per-node=1", f"--master-port={free_port}", "-m", "swin_lightning", *SHORT]
    options = ["--experiment=nodes", f"--trainer.strategy={strategy}", "--trainer.num_nodes=2", "--trainer.devices=1"]
    processes(*(["-m", "torch.distributed.run", f"--node-rank={rank}", *nodes, *options] for rank in (0, 1)))
    one = ["--experiment=one", f"--trainer.strategy={strategy}", "--trainer.devices=2"]
    processes(["-m", "swin_lightning", *SHORT, *one])
    for a, b in zip(rows("nodes"), rows("one"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
