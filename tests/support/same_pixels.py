"""One run on several ranks and accumulated batches: pixels, targets and losses of every global batch.

`python -m tests.support.same_pixels` trains the same 20 steps on 1, 2 and 3 processes (DDP on the CPU) and with 1, 2
and 4 accumulated batches, and compares each with the first.
"""

import argparse
import csv
import hashlib
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
from lightning import Callback
from lightning.pytorch.utilities import rank_zero_only

SHAPES = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 4), (2, 2)]  # ranks, accumulated batches
STEPS = 20
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "digits_swin_micro.yaml"


def fork_ranks(function, ranks):
    """Fork processes that call a function as the ranks of one machine; output goes to `log`. Returns their ids."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        os.setsid()
        if ranks > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {**address, "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
            rank_zero_only.rank = rank  # Lightning has read the environment before the fork
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(code)
    return pids


def ends(pids):
    """Wait for the processes; their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


class RecordSteps(Callback):
    """Appends a line for every training sample: optimizer step, index, and a hash of pixels and target.

    Args:
        folder: Folder of the files, one per rank.
    """

    def __init__(self, folder: str = "steps"):
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{trainer.global_rank}.txt").open("a") as file:
            for image, target, index in zip(batch["image"], batch["target"], batch["index"].tolist(), strict=True):
                content = image.numpy().tobytes() + target.numpy().tobytes()
                file.write(f"{trainer.global_step} {index} {hashlib.sha256(content).hexdigest()}\n")


def recorded_steps(folder):
    """The samples of every optimizer step on all ranks, as sets of lines; a step that was repeated counts once."""
    steps = {}
    for path in Path(folder).iterdir():
        lines = path.read_text().splitlines(keepends=True)
        for line in (line for line in lines if line.endswith("\n")):  # a killed process leaves the last one unfinished
            step, _, sample = line.partition(" ")
            steps.setdefault(int(step), set()).add(sample)
    return steps


def train(ranks, accumulate):
    """Train in a folder of its own; returns the samples of every step and the logged losses."""
    name = f"{ranks}x{accumulate}"
    args = [
        *("fit", "-c", str(EXPERIMENT), f"--experiment={name}", f"--trainer.max_steps={STEPS}"),
        *("--data.batch_size=48", "--data.mixup=0.8", "--data.cutmix=1", "--data.random_erasing=0.5"),
        *("--data.mix_probability=0.8", "--data.num_workers=0", "--model.backbone.drop_path_rate=0"),
        *("--ema.decay=0.9", "--trainer.log_every_n_steps=1", "--test_after_fit=false"),
        *("--trainer.accelerator=cpu", f"--trainer.devices={ranks}"),
        *(["--trainer.strategy=ddp"] if ranks > 1 else []),
        f"--trainer.accumulate_grad_batches={accumulate}",
        *("--trainer.callbacks+=tests.support.same_pixels.RecordSteps", f"--trainer.callbacks.folder=steps-{name}"),
    ]

    def main():
        from swin_lightning.cli import main

        main(args)

    assert ends(fork_ranks(main, ranks)) == [0] * ranks, Path("log").read_text("utf-8")[-2000:]
    (table,) = Path("runs", name).glob("*/metrics.csv")
    with table.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    (last,) = Path("runs", name).glob("*/checkpoints/last.ckpt")
    return recorded_steps(f"steps-{name}"), losses, torch.load(last, weights_only=True)["state_dict"]


def compare(shapes=SHAPES):
    """Lines `ranks x accumulated batches: ...` with what differs from one process, and the largest loss difference."""
    steps, losses, weights = train(*shapes[0])
    assert len(steps) == len(losses) == STEPS and {len(samples) for samples in steps.values()} == {48}
    results = []
    for ranks, accumulate in shapes[1:]:
        others, other_losses, other_weights = train(ranks, accumulate)
        unequal = [step for step in steps if others.get(step) != steps[step]]
        assert len(other_losses) == STEPS
        loss = max(abs(a - b) for a, b in zip(losses, other_losses, strict=True))
        apart = max((weights[name].float() - other_weights[name].float()).abs().max().item() for name in weights)
        results.append((ranks, accumulate, len(unequal) + len(others.keys() - steps), loss, apart))
    return results


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        results = compare()
    for ranks, accumulate, unequal, loss, apart in results:
        print(
            f"{ranks} ranks x {accumulate} accumulated batches: {unequal} of {STEPS} steps with other pixels or "
            f"targets; losses within {loss:.1e}, averaged weights within {apart:.1e}"
        )
    sys.exit(any(unequal or loss > 1e-5 for _, _, unequal, loss, _ in results))


if __name__ == "__main__":
    main()
