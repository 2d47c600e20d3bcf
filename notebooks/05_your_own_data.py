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
# # Your own data
#
# An image folder with one subfolder per class can be used without code. This notebook creates one from two photographs,
# shows its augmentation, trains a small Swin Transformer, fine-tunes it on larger images, classifies image files and
# exports the weights. To use your own data, set `FOLDER` to a folder with `train/<class>/*.jpg` and
# `val/<class>/*.jpg`, and skip the cell that creates one.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars in this notebook
os.environ.setdefault("WANDB_MODE", "disabled")

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from swin_lightning.cli import main
from swin_lightning.data import ImageFolder
from swin_lightning.data.sampling import ImageDataset
from swin_lightning.explore.evaluation import evaluate, load_run, load_samples, to_numpy
from swin_lightning.explore.figures import image_grid, write_photo_dataset
from swin_lightning.explore.result_figures import confusion_figure, curves_figure
from swin_lightning.explore.runs import read_runs
from swin_lightning.models.weights import read_checkpoint

torch.set_num_threads(1)
FOLDER = Path("runs/images")

# %% [markdown]
# ## Image folder
#
# Crops of 64 x 64 pixels from photographs of a temple and of a flower. The two classes are easy to separate by colour
# alone. Training and validation crops come from different parts of each photograph and share no pixels.

# %%
write_photo_dataset(FOLDER)
data = ImageFolder(str(FOLDER), image_size=32, eval_crop_ratio=1.0)
for split in ("train", "val"):
    source = data.sources[split] = data.load(split)
    print(f"{split}: {len(source)} images, {np.bincount(source.labels)} of {data.class_names}")
images, labels = load_samples(data, "val", np.linspace(0, len(data.sources["val"]) - 1, 8).astype(int))
image_grid(to_numpy(images), [data.class_names[k] for k in labels])

# %% [markdown]
# ## Augmentation
#
# One image per row: first without augmentation, then as augmented in epochs 0 to 6. Check that the object is still
# visible and that the colours are plausible. Augmentation depends only on seed, epoch and index, so these are exactly
# the pixels of the training below.

# %%
augmented = ImageFolder(str(FOLDER), image_size=32, crop_scale=(0.3, 1.0), rand_augment="rand-m5-mstd0.5-inc1")
train = ImageDataset(data.sources["train"], augmented.train_transform(), seed=0)
plain = ImageDataset(data.sources["train"], data.eval_transform())
rows = [[plain[i], *(train[epoch, i] for epoch in range(7))] for i in (40, 200)]
titles = ["original", *(f"epoch {epoch}" for epoch in range(7))] * len(rows)
image_grid([item["image"].permute(1, 2, 0).numpy() for row in rows for item in row], titles)

# %% [markdown]
# ## Train
#
# An experiment file defines `model` and `data`. `main` is equivalent to `swin-lightning fit -c runs/photographs.yaml`.

# %%
experiment = Path("runs/photographs.yaml")
experiment.write_text(
    f"""\
model:
  class_path: swin_lightning.SwinClassifier
  init_args:
    backbone:
      class_path: swin_lightning.models.SwinTransformer
      init_args:
        patch_size: 4
        window_size: 4
        embed_dim: 64
        depths: [2, 2]
        num_heads: [2, 4]
        mlp_ratio: 2.0
        init_std: 0.1
    lr: 1.0e-3
    warmup_epochs: 1
data:
  class_path: swin_lightning.data.ImageFolder
  init_args:
    path: {FOLDER}
    image_size: 32
    batch_size: 32
    num_workers: 0
    crop_scale: [0.3, 1.0]
    rand_augment: rand-m5-mstd0.5-inc1
    eval_crop_ratio: 1.0
trainer:
  max_epochs: 6
  log_every_n_steps: 5
""",
    encoding="utf-8",
)
small = main(["fit", "-c", str(experiment)]).run

# %% [markdown]
# ## Fine-tune at a higher resolution
#
# The same network is fine-tuned on images of 64 x 64 pixels: 16 x 16 tokens instead of 8 x 8, and window size 8 instead
# of 4. The relative position bias tables are resized, which is logged; any other missing, unexpected or mismatched
# parameter is an error. Published checkpoints are loaded in the same way: `--model.weights FILE`, with automatic
# detection of the format.

# %%
changes = ["--data.image_size=64", "--model.backbone.window_size=8", "--model.lr=5e-4", "--trainer.max_epochs=3"]
larger = main(
    ["fit", "-c", str(experiment), f"--model.weights={small.best}", "--experiment=photographs_64", *changes]
).run
for run in (small, larger):
    parameters = read_checkpoint(run.best)["state_dict"]
    table = parameters["backbone.layers.0.blocks.0.attn.relative_position_bias_table"]
    print(f"{run.name}: bias table {tuple(table.shape)}")

# %%
logs = read_runs(small.path, larger.path)
curves_figure(logs, names=["32 pixels, from scratch", "64 pixels, fine-tuned"])

# %%
model, data = load_run(larger.path)
result = evaluate(model, data)  # without a test split, the validation split is used
print(f"top-1 accuracy on {len(result.labels)} validation images: {100 * result.accuracy:.1f} %")
confusion_figure(result)

# %% [markdown]
# ## Classify image files
#
# `predict` takes an image or a folder and writes `predictions.csv` with the five most probable classes of each file.

# %%
CKPT, FILES = larger.best, FOLDER / "val/flower"
prediction = main(
    ["predict", "-c", str(experiment), f"--ckpt_path={CKPT}", "--data.image_size=64", f"--data.predict_path={FILES}"]
)
table = pd.read_csv(prediction.run.predictions)
table.head()

# %% [markdown]
# ## Export
#
# Export the weights, here in timm's format, and read them back.

# %%
main(["export", str(CKPT), "--format", "timm", "--output", "runs/photographs.safetensors"])
exported = read_checkpoint("runs/photographs.safetensors")
print(f"{len(exported)} tensors, {sum(p.numel() for p in exported.values()):,} parameters")
print("same head as the model:", torch.equal(exported["head.fc.weight"], model.head.weight))
