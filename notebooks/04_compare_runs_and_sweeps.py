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
# Each run folder, `runs/<experiment>/<time>-<id>/`, contains the configuration, the logged metrics and the files of
# Weights & Biases (W&B). This notebook reads them into one table and creates training curves, a comparison, a CSV file
# and a row for the table of results.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars in this notebook
os.environ.setdefault("WANDB_MODE", "offline")  # the runs below write W&B files without an account

from pathlib import Path

import torch

from swin_lightning.cli import main
from swin_lightning.explore.figures import detach_from_pyplot
from swin_lightning.explore.result_figures import curves_figure
from swin_lightning.explore.runs import all_metrics, read_runs, results
from swin_lightning.sweep.results import load_sweep
from swin_lightning.sweep.sweep_figures import importance, metric_over_trials, parallel_coordinates

torch.set_num_threads(1)

# %% [markdown]
# ## Run a sweep
#
# A sweep is defined by a file in the format of W&B, and also runs without W&B. Its trials are ordinary runs. This
# example has three trials of two epochs on the digits. To inspect your own sweep, skip this cell and set its folder in
# the next one.

# %%
Path("runs").mkdir(exist_ok=True)
Path("runs/tiny.yaml").write_text(
    """\
program: swin-lightning
name: tiny
method: random
metric: {name: val/acc_best, goal: maximize}
run_cap: 3
command:
  - swin-lightning
  - fit
  - -c
  - digits_swin_micro
  - --trainer.max_epochs=2
  - --trainer.log_every_n_steps=10
  - --model.warmup_epochs=0.5
  - ${args}
parameters:
  model.lr: {distribution: log_uniform_values, min: 5.0e-4, max: 5.0e-3}
  model.label_smoothing: {values: [0.0, 0.1]}
""",
    encoding="utf-8",
)
main(["sweep", "runs/tiny.yaml", "--local", "--agents=1"])

# %%
SWEEP = max(Path("runs/sweeps/tiny").iterdir())
trials = load_sweep(SWEEP)  # or a sweep on the W&B server, "team/project/sweep"
trials[["number", "state", "seconds", *trials.attrs["parameters"], trials.attrs["metric"]]].round(4)

# %% [markdown]
# Parallel coordinates (one line per trial), the metric over the trials, and the importance of each option, estimated
# with a random forest that predicts the metric from the options. Three trials are too few for a meaningful estimate;
# use these figures with a sweep of your own.

# %%
detach_from_pyplot(parallel_coordinates(trials))

# %%
detach_from_pyplot(metric_over_trials(trials))

# %%
detach_from_pyplot(importance(trials))

# %% [markdown]
# ## Metrics of all runs
#
# `read_runs` reads a run, an experiment, a sweep, or all of `runs/`. A run without `metrics.csv` is read from its
# offline W&B files. `read_wandb("team/project")` reads runs from the W&B server, in the same format.

# %%
logs = read_runs(SWEEP)
frame = all_metrics(logs)
print(f"{frame['run'].nunique()} runs, {len(frame)} logged rows")
frame.groupby("run")[["train/loss", "val/acc"]].count()  # number of logged values

# %%
(offline,) = read_runs(*SWEEP.glob(f"runs/*/{Path(logs[0].name).name}/wandb"))
both = logs[0].metrics.merge(offline.metrics, on=["step", "epoch"], suffixes=("", " of W&B"))
gap = (both["train/loss"] - both["train/loss of W&B"]).abs().max()
print(f"{offline.name}, read from its W&B files: maximum difference of the loss {gap:.0e}")

# %% [markdown]
# ## Compare runs
#
# The legend shows the options of the sweep; the table shows all options that differ between the runs.

# %%
varied = trials.attrs["parameters"]
names = [", ".join(f"{key} = {log.config[key]:.4g}" for key in varied) for log in logs]
curves_figure(logs, names=names)

# %%
table = results(logs)
table.round(4)

# %% [markdown]
# Times exclude validation. A difference is only meaningful if it is more than a few images, and larger than the
# variation between seeds:

# %%
first, second = table["best val/acc"].nlargest(2)
print(f"best minus second: {100 * (first - second):.2f} %, or {180 * (first - second):.0f} of 180 images")

# %% [markdown]
# ## Export
#
# All metrics as CSV. `swin-lightning results RUN` records a run in the table of `experiments/README.md`.

# %%
frame.to_csv("runs/all.csv", index=False)
print(f"runs/all.csv: {Path('runs/all.csv').stat().st_size:,} bytes")
