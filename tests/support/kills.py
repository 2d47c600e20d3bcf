"""Kill and resume a run many times, and compare its final state with an uninterrupted run.

`python -m tests.support.kills --help`. The runs are forked from a process that has imported everything, so that a run
starts within a second. `--ranks 2` trains on two processes (DDP on the CPU); `--accumulate 1 2 4` resumes with the next
of these numbers of accumulated batches after every kill, and compares pixels and targets of every step as well.
"""

import argparse
import io
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.support.same_pixels import ends, fork_ranks, recorded_steps

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PART, LAST = ".last.ckpt.part", "last.ckpt"


def arguments(data, name, epochs, ranks=1, drop_path=0.2):
    """A small Swin with stochastic depth, augmentation, mixup, CutMix, random erasing and EMA."""
    return [
        *("fit", "-c", str(EXPERIMENTS / "cifar10_swin_micro.yaml"), f"--experiment={name}"),
        *(f"--data.path={data}", "--data.val_size=64", "--data.batch_size=32", "--data.num_workers=2"),
        *(
            "--data.rand_augment=rand-m9-mstd0.5-inc1",
            "--data.mixup=0.8",
            "--data.cutmix=1",
            "--data.random_erasing=0.3",
        ),
        *(f"--model.backbone.drop_path_rate={drop_path}", "--ema.decay=0.9", "--checkpoint.every_n_train_steps=2"),
        *(f"--trainer.max_epochs={epochs}", "--trainer.accelerator=cpu", f"--trainer.devices={ranks}"),
        *(["--trainer.strategy=ddp"] if ranks > 1 else []),
        *("--trainer.logger=false", "--test_after_fit=false"),
        *("--trainer.callbacks+=tests.support.same_pixels.RecordSteps", f"--trainer.callbacks.folder=steps-{name}"),
    ]


def start(args, ranks=1):
    """Fork the processes of a run; their output goes to the file `log`."""

    def train():
        from swin_lightning.cli import main

        main(args)

    return fork_ranks(train, ranks)


def run(args, ranks=1):
    codes = ends(start(args, ranks))
    assert codes == [0] * ranks, Path("log").read_text("utf-8")[-2000:]


def checkpoint(name):
    (folder,) = Path("runs", name).iterdir()
    return torch.load(folder / "checkpoints" / LAST, weights_only=True)


def kill_and_resume(args, name, kills, rng, ranks=1, accumulate=(1,)):
    """Train to the end with `kills` SIGKILLs, every third during a checkpoint write. Returns both counts.

    After every kill the run is resumed with the next of the numbers of accumulated batches.
    """
    folder, counts, numbers = Path("runs", name), {"writing": 0, "anywhere": 0}, itertools.cycle(accumulate)
    while sum(counts.values()) < kills:
        resume = ["--ckpt_path=last"] if list(folder.glob(f"*/checkpoints/{LAST}")) else []
        before = {p: p.stat().st_mtime_ns for p in folder.glob(f"*/checkpoints/{LAST}")}
        pids = start([*args, *resume, f"--trainer.accumulate_grad_batches={next(numbers)}"], ranks)
        while_writing = sum(counts.values()) % 3 == 0
        moment = None  # when to kill; set when the run has written a checkpoint and so made progress
        while True:
            done, status = os.waitpid(pids[0], os.WNOHANG)
            if done:
                codes = [os.waitstatus_to_exitcode(status), *ends(pids[1:])]
                assert codes == [0] * ranks, Path("log").read_text("utf-8")[-2000:]
                return counts  # the run has finished
            new = {p: p.stat().st_mtime_ns for p in folder.glob(f"*/checkpoints/{LAST}")} != before
            if new and while_writing and list(folder.glob(f"*/checkpoints/{PART}")):
                break
            if new and not while_writing:
                moment = moment or time.monotonic() + rng.uniform(0, 0.6)
                if time.monotonic() > moment:
                    break
            time.sleep(0 if while_writing and new else 0.002)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ends(pids)
        unfinished = bool(list(folder.glob(f"*/checkpoints/{PART}")))
        counts["writing" if unfinished else "anywhere"] += 1
        checkpoint(name)  # readable
    run([*args, "--ckpt_path=last", f"--trainer.accumulate_grad_batches={next(numbers)}"], ranks)
    return counts


def differences(a, b, name=""):
    """Names of the values that are not bitwise equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{name}[{i}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [name]


STATES = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")


def compare(data, kills, epochs, seed=0, ranks=1, accumulate=(1,)):
    """Train with and without kills. Returns the counts of kills, the last step, and the names of what differs.

    With several numbers of accumulated batches sums are rounded differently: then only the weights are compared, and
    may be 1e-4 apart.
    """
    exact = len(accumulate) == 1
    options = {"ranks": ranks, "drop_path": 0.2 if exact else 0.0}  # masks of stochastic depth are per micro-batch
    run([*arguments(data, "whole", epochs, **options), f"--trainer.accumulate_grad_batches={accumulate[0]}"], ranks)
    args = arguments(data, "killed", epochs, **options)
    counts = kill_and_resume(args, "killed", kills, random.Random(seed), ranks, accumulate)
    whole, killed = checkpoint("whole"), checkpoint("killed")
    assert recorded_steps("steps-whole") and whole["global_step"] == len(recorded_steps("steps-whole"))
    different = [] if recorded_steps("steps-whole") == recorded_steps("steps-killed") else ["pixels or targets"]
    if exact:
        different += [d for key in STATES for d in differences(whole[key], killed[key], key)]
    else:
        different += [key for key in ("global_step", "epoch") if whole[key] != killed[key]]
        for key in ("state_dict", "current_model_state"):
            worst = max((whole[key][name].float() - killed[key][name].float()).abs().max() for name in whole[key])
            different += [f"{key} by {worst:.1e}"] if worst > 1e-4 else []
    return counts, whole["global_step"], different


def write_parquet(folder, images, source=None):
    """Write a data set in the layout of CIFAR-10: noise, or the first images of the folder `source`."""
    import datasets
    import numpy as np
    from PIL import Image

    from swin_lightning.data import CIFAR10

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CIFAR10.class_names)})
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("test", 32)):
        if source is None:
            rows = []
            for pixels in rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                rows.append({"bytes": file.getvalue(), "path": None})
            labels = rng.integers(10, size=count).tolist()
        else:
            table = datasets.load_dataset(str(source), split=f"{split}[:{count}]").cast_column(
                "img", datasets.Image(decode=False)
            )
            rows, labels = table["img"][:], table["label"][:]
        data = datasets.Dataset.from_dict({"img": rows, "label": labels}, features=features)
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, help="folder in the layout of CIFAR-10 on the Hub; noise by default")
    parser.add_argument("--images", type=int, default=2112)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--accumulate", type=int, nargs="+", default=[1], help="accumulated batches, in turn")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; must not exist")
    options = parser.parse_args()
    source = options.path and options.path.resolve()
    options.folder.mkdir(parents=True)
    os.chdir(options.folder)
    torch.set_num_threads(1)
    os.environ |= {"WANDB_MODE": "disabled", "HF_DATASETS_CACHE": str(Path("cache").resolve())}
    data = write_parquet(Path("data"), options.images, source)
    counts, steps, different = compare(
        data, options.kills, options.epochs, ranks=options.ranks, accumulate=options.accumulate
    )
    print(f"{steps} steps, killed {counts}; differences at the end: {different or 'none'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
