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
# A folder of class folders needs no code. This notebook makes one from two real photographs, looks at what augmentation
# does to it, trains a small Swin, carries its weights on to larger images, classifies single files and exports the
# result. Put the path of your own folder in `FOLDER`, with `train/<class>/*.jpg` and `val/<class>/*.jpg` in it, and
# leave out the cell that makes one.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here
os.environ.setdefault("WANDB_MODE", "disabled")

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from swin_lightning.cli import main
from swin_lightning.data import ImageFolder
from swin_lightning.data.sampling import ImageDataset
from swin_lightning.explore.evaluation import evaluate, open_run, pixels, samples
from swin_lightning.explore.figures import image_sheet, photograph_folder
from swin_lightning.explore.result_figures import confusion_figure, curves_figure
from swin_lightning.explore.runs import read_runs
from swin_lightning.models.weights import read_checkpoint

torch.set_num_threads(1)
FOLDER = Path("runs/photographs")

# %% [markdown]
# ## A folder of images
#
# Crops of 64 x 64 pixels of a temple in China and of a flower: an easy pair, since the colours alone nearly tell them
# apart. Validation crops come from another part of each photograph, so that no pixel is in both sets.

# %%
photograph_folder(FOLDER)
data = ImageFolder(str(FOLDER), image_size=32, eval_crop_ratio=1.0)
for split in ("train", "val"):
    source = data.sources[split] = data.load(split)
    print(f"{split}: {len(source)} images, {np.bincount(source.labels)} of {data.class_names}")
images, labels = samples(data, "val", np.linspace(0, len(data.sources["val"]) - 1, 8).astype(int))
image_sheet(pixels(images), [data.class_names[k] for k in labels])

# %% [markdown]
# ## What the network will see in training
#
# A row is one image, a column an epoch: first as it is, then with the augmentation of the experiment. Is the object
# still there, are the colours still possible, is the text still readable? Augmentation is a function of seed, epoch and
# index, so these are the very pixels of the training below.

# %%
augmented = ImageFolder(str(FOLDER), image_size=32, crop_scale=(0.3, 1.0), rand_augment="rand-m5-mstd0.5-inc1")
train = ImageDataset(data.sources["train"], augmented.train_transform(), seed=0)
plain = ImageDataset(data.sources["train"], data.eval_transform())
rows = [[plain[i], *(train[epoch, i] for epoch in range(7))] for i in (40, 200)]
titles = ["as it is", *(f"epoch {epoch}" for epoch in range(7))] * len(rows)
image_sheet([item["image"].permute(1, 2, 0).numpy() for row in rows for item in row], titles)

# %% [markdown]
# ## Train, with an experiment in a file
#
# An experiment states its whole `model` and `data`. This one would as well start with `swin-lightning fit -c
# runs/photographs.yaml`.

# %%
experiment = Path("runs/photographs.yaml")
experiment.write_text(f"""\
model:
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
""")
small = main(["fit", "-c", str(experiment)]).run_dir

# %% [markdown]
# ## Fine-tune from weights, with larger images
#
# The same network now gets images of 64 pixels: a map of 16 x 16 tokens in place of 8 x 8, and windows of 8 in place of
# 4. The bias tables are resized, and it is said; everything else must fit exactly, or it is an error that names it. A
# published checkpoint is taken up in the same way: `--model.weights FILE`, whichever project wrote it.

# %%
best = str(small / "checkpoints/best.ckpt")
changes = ["--data.image_size=64", "--model.backbone.window_size=8", "--model.lr=5e-4", "--trainer.max_epochs=3"]
larger = main(
    ["fit", "-c", str(experiment), f"--model.weights={best}", "--experiment=photographs_64", *changes]
).run_dir
tables = {
    folder: p.shape for folder in (small, larger)
    for name, p in read_checkpoint(folder / "checkpoints/best.ckpt")["state_dict"].items()
    if name.endswith("layers.0.blocks.0.attn.relative_position_bias_table")
}  # fmt: skip
for folder, shape in tables.items():
    print(f"{folder.parent.name}: bias table {tuple(shape)}")

# %%
logs = read_runs(small, larger)
curves_figure(logs, names=["32 pixels, from scratch", "64 pixels, from those weights"])

# %%
classifier, data = open_run(larger)
result = evaluate(classifier, data)  # without a test split, testing means the validation split
print(f"{100 * result.accuracy:.1f} % of {len(result.labels)} images that no training has seen")
confusion_figure(result)

# %% [markdown]
# ## Classify files
#
# `predict` takes an image or a folder and writes a table: the five most probable classes of every file.

# %%
CKPT, FILES = larger / "checkpoints/best.ckpt", FOLDER / "val/flower"
prediction = main(
    ["predict", "-c", str(experiment), f"--ckpt_path={CKPT}", "--data.image_size=64", f"--data.predict_path={FILES}"]
)
table = pd.read_csv(prediction.run_dir / "predictions.csv")
table.head()

# %% [markdown]
# ## Export
#
# The weights for another project, here under timm's names, and read back: what is written is what was trained.

# %%
main(["export", str(CKPT), "--format", "timm", "--output", "runs/photographs.safetensors"])
exported = read_checkpoint("runs/photographs.safetensors")
print(f"{len(exported)} tensors, {sum(p.numel() for p in exported.values()):,} numbers")
print("the head is the trained one:", torch.equal(exported["head.fc.weight"], classifier.head.weight))
