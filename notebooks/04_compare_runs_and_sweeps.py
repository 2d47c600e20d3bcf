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
from swin_lightning.explore.figures import detached
from swin_lightning.explore.result_figures import curves_figure
from swin_lightning.explore.runs import all_metrics, markdown_row, read_runs, results
from swin_lightning.sweep.results import load_sweep
from swin_lightning.sweep.sweep_figures import importance, metric_over_trials, parallel_coordinates

torch.set_num_threads(1)

# %% [markdown]
# ## A sweep to look at
#
# A sweep is a file in the format of W&B that also runs without W&B: its trials are ordinary runs. This one is tiny,
# three trials of two epochs on the digits. To look into your own, leave this cell out and give the next one its folder.

# %%
Path("runs").mkdir(exist_ok=True)
Path("runs/tiny.yaml").write_text("""\
program: swin-lightning
name: tiny
method: random
metric: {name: val/acc_best, goal: maximize}
run_cap: 3
command:
  - swin-lightning
  - fit
  - -c
  - ../experiments/digits_swin_micro.yaml
  - --trainer.max_epochs=2
  - --trainer.log_every_n_steps=10
  - --model.warmup_epochs=0.5
  - ${args}
parameters:
  model.lr: {distribution: log_uniform_values, min: 5.0e-4, max: 5.0e-3}
  model.label_smoothing: {values: [0.0, 0.1]}
""")
main(["sweep", "runs/tiny.yaml", "--local", "--agents=1"])

# %%
SWEEP = max(Path("runs/sweeps/tiny").iterdir())
trials = load_sweep(SWEEP)  # or W&B's "team/project/sweep"
trials[["number", "state", "seconds", *trials.attrs["parameters"], trials.attrs["metric"]]].round(4)

# %% [markdown]
# A line is a trial, from its options to its result; then the results in the order of the trials. Which option mattered
# is asked of a random forest that guesses the result from the options. Three trials are too few to answer; the pictures
# are here to be filled by a sweep of yours.

# %%
detached(parallel_coordinates(trials))

# %%
detached(metric_over_trials(trials))

# %%
detached(importance(trials))

# %% [markdown]
# ## One table
#
# `read_runs` takes a run, an experiment, a sweep, or the whole of `runs/`. A run whose `metrics.csv` is lost is read
# from its offline W&B files; runs on W&B's server come with `read_wandb("team/project")`, through `wandb.Api`, into the
# same shape.

# %%
logs = read_runs(SWEEP)
frame = all_metrics(logs)
print(f"{frame['run'].nunique()} runs, {len(frame)} logged rows")
frame.groupby("run")[["train/loss", "val/acc"]].count()  # how often each was logged

# %%
(offline,) = read_runs(*SWEEP.glob(f"runs/*/{Path(logs[0].name).name}/wandb"))
both = logs[0].metrics.merge(offline.metrics, on=["step", "epoch"], suffixes=("", " of W&B"))
gap = (both["train/loss"] - both["train/loss of W&B"]).abs().max()
print(f"{offline.name}, read from W&B's files: largest difference of the loss {gap:.0e}")

# %% [markdown]
# ## Side by side
#
# The legend names what the sweep has varied, the table whatever differs between the configurations.

# %%
varied = trials.attrs["parameters"]
names = [", ".join(f"{key} = {log.config[key]:.4g}" for key in varied) for log in logs]
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
frame.to_csv("runs/all.csv", index=False)
best = max(logs, key=lambda log: log.best("val/acc"))
print(f"runs/all.csv: {Path('runs/all.csv').stat().st_size:,} bytes")
print(markdown_row(best, hardware=f"{torch.get_num_threads()} CPU core"))
