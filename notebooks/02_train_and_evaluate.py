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
# # Train and evaluate
#
# From a YAML file to a trained model in Python, and then the questions that an accuracy alone leaves open: how did it
# learn, what does it confuse, where is it surely wrong, and can its probabilities be believed?
#
# The data are 1,797 scanned digits that come inside scikit-learn, so nothing is downloaded. The experiment trains for
# 40 epochs; 12 are enough here.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here
os.environ.setdefault("WANDB_MODE", "disabled")  # this notebook looks at the run's own files

import torch

from swin_lightning.cli import main
from swin_lightning.explore.evaluation import evaluate, open_run, pixels, samples
from swin_lightning.explore.figures import image_sheet
from swin_lightning.explore.result_figures import calibration_figure, confusion_figure, curves_figure, mistakes_figure
from swin_lightning.explore.runs import read_runs

torch.set_num_threads(1)

# %% [markdown]
# ## Train
#
# `main` takes the arguments of the command line, reads the same files, and returns what it built. Every run has a
# folder of its own; all that follows reads from there, so that it works as well for a run of last week.

# %%
cli = main(["fit", "-c", "../experiments/digits_swin_micro.yaml", "--trainer.max_epochs=12", "--model.warmup_epochs=1"])
RUN = cli.run_dir  # or the folder of another run
sorted(path.name for path in RUN.iterdir())

# %% [markdown]
# ## What it saw
#
# The test images as the network gets them, before normalisation: 8 x 8 grey pixels, enlarged to 32 x 32.

# %%
classifier, data = open_run(RUN)
images, labels = samples(data, "test", range(16))
image_sheet(pixels(images), [data.class_names[k] for k in labels])

# %% [markdown]
# ## Learning curves
#
# Two things are worth a look: does the validation loss turn up again while the training loss falls (then it memorises),
# and is the accuracy still rising at the end (then it was stopped early)? The training loss has a floor above zero:
# label smoothing of 0.1 does not let it reach less.

# %%
(log,) = read_runs(RUN)
curves_figure([log])

# %%
smoothing, K = log.config["model.label_smoothing"], len(data.class_names)
target = torch.full((K,), smoothing / K)
target[0] += 1 - smoothing
print(f"smallest possible training loss: {-(target * target.log()).sum():.3f}")
print(f"training loss at the end: {log.last('train/loss'):.3f}, validation accuracy: {100 * log.last('val/acc'):.1f} %")

# %% [markdown]
# ## Confusion
#
# A row is a true class, a column what the model said; off the diagonal are the mistakes.

# %%
result = evaluate(classifier, data)
print(f"{100 * result.accuracy:.2f} % of {len(result.labels)} test images")
confusion_figure(result)

# %%
result.confused().head(5)

# %% [markdown]
# ## The worst mistakes
#
# Wrong, and sure of it. These pictures tell more than any number: a label may be wrong, a digit may be cut off, or the
# model may really not know something.

# %%
mistakes_figure(result, data)

# %% [markdown]
# ## Can the probabilities be believed?
#
# Of all predictions made with a probability of 70 %, 70 % should be right. Above the diagonal a model is more often
# right than it says. Label smoothing pulls in that direction, and so does stopping early.

# %%
calibration_figure(result)

# %%
table = result.calibration()
more_often = (table["accuracy"] > table["confidence"]).mul(table["images"]).sum() / table["images"].sum()
print(f"{100 * more_often:.0f} % of the images are in bins where the model is right more often than it says")

# %% [markdown]
# The same pictures for any run on one page: `swin-lightning report RUN`.
