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
# # Attention and saliency maps
#
# Attention is computed in windows that are shifted, clamped and padded. For visualisation it has to be mapped back to
# image coordinates. This notebook does so for a model trained as in notebook 2. Set `RUN` to a run folder to inspect
# another model.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars in this notebook
os.environ.setdefault("WANDB_MODE", "disabled")

import torch

from swin_lightning.cli import main
from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.explore.evaluation import evaluate, load_run, load_samples, to_numpy
from swin_lightning.explore.model_figures import (
    bias_figure,
    distance_figure,
    features_figure,
    query_figure,
    saliency_figure,
)
from swin_lightning.explore.saliency import attention_rollout, find_backbone, grad_cam

torch.set_num_threads(1)
RUN = None  # such as "../runs/digits_swin_micro/20260101-120000-0a1b2c3d"

# %%
RECIPE = ["-c", "digits_swin_micro", "--trainer.max_epochs=12", "--model.warmup_epochs=1"]
model, data = load_run(RUN or main(["fit", *RECIPE]).run_dir)
result = evaluate(model, data)
pixels, labels = load_samples(data, "test", result.indices[result.balanced_sample(8)])  # one image of each class first
images = data.normalize(pixels)
photos = to_numpy(pixels)
with torch.no_grad():
    predictions = model(images).softmax(dim=1).max(dim=1)
names = [data.class_names[k] for k in predictions.indices]

# %% [markdown]
# ## Attention in image coordinates
#
# `record_attention` records the attention weights of all blocks during a forward pass. The outputs do not change, not
# even by rounding. The figure shows the attention of one query token, marked in the centre of the image, for each head;
# tokens outside its window are grey. The first block of a stage attends within regular windows, the second within
# shifted windows, across the borders of the regular ones.

# %%
with torch.no_grad():
    expected = model(images)
    with record_attention(model) as record:
        recorded = model(images)
print("outputs unchanged:", torch.equal(expected, recorded))
for block in record.values():
    print(f"{block.name}: map {block.size}, window {block.window}, shift {block.shift}, heads {block.weights.shape[2]}")

# %%
query_figure(photos[0], list(record.values())[:2], query=(0.5, 0.5))

# %%
regular, shifted = list(record.values())[:2]
H, W = regular.size
for block in (regular, shifted):
    attention = block.attention_from(H // 2, W // 2)[0].mean(dim=0)
    print(f"shift {block.shift}: sum {attention.sum():.4f}, above the centre row {attention[: H // 2].sum():.4f}")

# %% [markdown]
# ## Attention distance
#
# Mean distance from query to key, weighted by attention, for each head. A head with a distance near zero attends mostly
# to the query itself. The window size is an upper bound.

# %%
distance_figure(record, find_backbone(model).patch_size)

# %% [markdown]
# ## Relative position bias
#
# The bias that each head adds to the attention logits, by offset from query to key. It does not depend on the image.

# %%
blocks = dict(swin_blocks(model))
name = next(iter(blocks))
bias_figure(blocks[name], name)

# %%
name = list(blocks)[-1]
bias_figure(blocks[name], name)

# %% [markdown]
# ## Rollout and Grad-CAM
#
# Two saliency methods for the whole network. **Attention rollout** propagates relevance back through the attention of
# all blocks, attributes half of each output to the residual connection, and ignores values and MLPs. **Grad-CAM**
# weights the channels of a stage by the gradient of the predicted class and ignores the layers before. Agreement of the
# two is some evidence that they are meaningful. The second cell computes their correlation with the ink of the digits,
# which may be low for a model as small and as briefly trained as this one.

# %%
rows = {
    "rollout": attention_rollout(model, images),
    "Grad-CAM,\nstage 1": grad_cam(model, images, stage=0),
    "Grad-CAM,\nlast stage": grad_cam(model, images, stage=-1),
}
titles = [f"{name}: {100 * p:.0f} %" for name, p in zip(names, predictions.values, strict=True)]
saliency_figure(photos, rows, titles)

# %%
ink = torch.nn.functional.adaptive_avg_pool2d(pixels.float().mean(dim=1), rows["rollout"].shape[1:]).flatten(1)
for name in ("rollout", "Grad-CAM,\nstage 1"):
    pairs = zip(rows[name].flatten(1), ink, strict=True)
    r = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    print(f"{name.split(',')[0]}: correlation with the ink {r.mean():+.2f} (from {r.min():+.2f} to {r.max():+.2f})")

# %% [markdown]
# ## Features
#
# The first three principal components of each stage's features as red, green and blue: tokens of similar colour have
# similar features. Colours of different stages are not comparable.

# %%
with torch.no_grad():
    maps = find_backbone(model).feature_maps(images)
features_figure(photos[0], [stage[0] for stage in maps])

# %%
for i, stage in enumerate(maps, start=1):
    tokens = stage.permute(0, 2, 3, 1).flatten(0, 2)
    variance = torch.linalg.svdvals(tokens - tokens.mean(dim=0)).square()
    share = variance[:3].sum() / variance.sum()
    print(f"stage {i}: 3 of {len(variance)} components explain {100 * share:.0f} % of the variance")
