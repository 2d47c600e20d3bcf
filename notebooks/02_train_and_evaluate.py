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
# This notebook trains a model from a YAML file and evaluates it beyond its accuracy: training curves, confusion matrix,
# most confident errors and calibration.
#
# The data set is the 1,797 scanned digits included in scikit-learn, so nothing is downloaded. The experiment trains for
# 40 epochs; 12 are enough here.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars in this notebook
os.environ.setdefault("WANDB_MODE", "disabled")  # this notebook reads the files of the run folder

import torch

from swin_lightning.cli import main
from swin_lightning.explore.evaluation import evaluate, load_run, load_samples, to_numpy
from swin_lightning.explore.figures import image_grid
from swin_lightning.explore.result_figures import (
    calibration_figure,
    confusion_figure,
    curves_figure,
    predictions_figure,
)
from swin_lightning.explore.runs import read_runs

torch.set_num_threads(1)

# %% [markdown]
# ## Train
#
# `main` takes the same arguments as the command line and returns the trainer, the model and the run folder. Everything
# below reads from the run folder, so it works for any earlier run as well.

# %%
cli = main(["fit", "-c", "digits_swin_micro", "--trainer.max_epochs=12", "--model.warmup_epochs=1"])
RUN = cli.run_dir  # or the path of an earlier run
sorted(path.name for path in RUN.iterdir())

# %% [markdown]
# ## Input images
#
# Test images after the evaluation transform, before normalisation: 8 x 8 greyscale pixels, resized to 32 x 32.

# %%
model, data = load_run(RUN)
images, labels = load_samples(data, "test", range(16))
image_grid(to_numpy(images), [data.class_names[k] for k in labels])

# %% [markdown]
# ## Training curves
#
# A validation loss that rises while the training loss keeps falling indicates overfitting. An accuracy that still rises
# at the end indicates that training was too short. With label smoothing of 0.1 the training loss has a lower bound
# above zero.

# %%
(log,) = read_runs(RUN)
curves_figure([log])

# %%
smoothing, K = log.config["model.label_smoothing"], len(data.class_names)
target = torch.full((K,), smoothing / K)
target[0] += 1 - smoothing
print(f"lower bound of the training loss: {-(target * target.log()).sum():.3f}")
print(f"final training loss: {log.last('train/loss'):.3f}, validation accuracy: {100 * log.last('val/acc'):.1f} %")

# %% [markdown]
# ## Confusion matrix
#
# Rows are true classes, columns are predicted classes; off-diagonal entries are errors.

# %%
result = evaluate(model, data)
print(f"top-1 accuracy on {len(result.labels)} test images: {100 * result.accuracy:.2f} %")
confusion_figure(result)

# %%
result.confused_pairs().head(5)

# %% [markdown]
# ## Most confident errors
#
# Wrong predictions with the highest probability. Look for wrong labels, cropped digits and patterns that the model has
# not learned.

# %%
errors = result.errors()[:16]
images, _ = load_samples(data, "test", result.indices[errors])
predictions_figure(result, errors, to_numpy(images))

# %% [markdown]
# ## Calibration
#
# Of all predictions with a probability of 70 %, 70 % should be correct. Above the diagonal the model is underconfident.
# Label smoothing has that effect, and so does a short training.

# %%
calibration_figure(result)

# %%
table = result.calibration_bins()
underconfident = (table["accuracy"] > table["confidence"]).mul(table["images"]).sum() / table["images"].sum()
print(f"{100 * underconfident:.0f} % of the images are in bins where the model is underconfident")

# %% [markdown]
# `swin-lightning report RUN` writes these figures for any run to one HTML page.
