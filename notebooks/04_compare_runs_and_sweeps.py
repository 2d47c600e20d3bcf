# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare runs and sweeps
#
# Every run leaves its story in `runs/<experiment>/<time>-<id>/`: the configuration, the logged metrics, and the files
# of Weights & Biases. Here they become one table, wherever they come from, and from it come curves, a comparison, a CSV
# and a row for the table of results.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here
os.environ.setdefault("WANDB_MODE", "offline")  # the runs below keep W&B's files, and ask for no account

from pathlib import Path

import torch

from swin_lightning.cli import main
from swin_lightning.explore.result_figures import curves_figure
from swin_lightning.explore.runs import all_metrics, differences, markdown_row, read_runs, results

torch.set_num_threads(1)

# %% [markdown]
# ## Three runs to compare
#
# The digits experiment, shortened, with three learning rates. With runs of your own, leave this cell out and give the
# next one your folder.

# %%
SHORT = ["--trainer.max_epochs=3", "--model.warmup_epochs=0.5", "--trainer.log_every_n_steps=10"]
folders = [
    main(["fit", "-c", "../experiments/digits_swin_micro.yaml", *SHORT, f"--model.lr={lr}"]).run_dir
    for lr in ("5e-4", "1e-3", "2e-3")
]

# %% [markdown]
# ## One table
#
# `read_runs` takes folders of runs, of experiments, or the whole of `runs/`. A run whose `metrics.csv` is lost is read
# from its offline W&B files; runs on W&B's server come with `read_wandb("team/project")`, through `wandb.Api`, into the
# same shape.

# %%
logs = read_runs(*folders)
frame = all_metrics(logs)
print(f"{frame['run'].nunique()} runs, {len(frame)} logged rows")
frame.groupby("run")[["train/loss", "val/acc"]].count()  # how often each was logged

# %%
(offline,) = read_runs(folders[0] / "wandb")
merged = logs[[log.name for log in logs].index(offline.name)].metrics.merge(offline.metrics, on=["step", "epoch"])
gap = (merged["val/acc_x"] - merged["val/acc_y"]).abs().max()
print(f"{offline.name}, read from W&B's files: largest difference of val/acc {gap:.1e}")

# %% [markdown]
# ## Side by side
#
# The legend names what differs and leaves out what does not.

# %%
names = [", ".join(f"{key} = {value}" for key, value in changed.items()) for changed in differences(logs)]
curves_figure(logs, names=names)

# %%
table = results(logs)
table.round(4)

# %% [markdown]
# Times are those of training alone. Before a difference is believed, it should be more than a few images, and more than
# another seed makes:

# %%
first, second = table["best val/acc"].nlargest(2)
print(f"from second to best: {100 * (first - second):.2f} %, which is {180 * (first - second):.0f} of 180 images")

# %% [markdown]
# ## Export
#
# All rows as CSV, and the best run as a row of `experiments/README.md`.

# %%
Path("runs").mkdir(exist_ok=True)
frame.to_csv("runs/all.csv", index=False)
best = max(logs, key=lambda log: log.best("val/acc"))
print(f"runs/all.csv: {Path('runs/all.csv').stat().st_size:,} bytes")
print(markdown_row(best, hardware=f"{torch.get_num_threads()} CPU core"))
