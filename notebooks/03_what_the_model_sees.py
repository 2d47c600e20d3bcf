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
# # What the model sees
#
# Attention is computed in windows that are shifted, clamped and padded. To be read, it has to be put back onto the
# image. This notebook does so for a model trained by the recipe of notebook 2. Give `RUN` the folder of a run of yours
# to look into that one.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here
os.environ.setdefault("WANDB_MODE", "disabled")

import torch

from swin_lightning.cli import main
from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.explore.evaluation import evaluate, open_run, pixels, samples
from swin_lightning.explore.model_figures import (
    bias_figure,
    distance_figure,
    features_figure,
    overlay_figure,
    query_figure,
)
from swin_lightning.explore.saliency import backbone_of, grad_cam, rollout

torch.set_num_threads(1)
RUN = None  # such as "../runs/digits_swin_micro/20260101-120000-0a1b2c3d"

# %%
RECIPE = ["-c", "../experiments/digits_swin_micro.yaml", "--trainer.max_epochs=12", "--model.warmup_epochs=1"]
classifier, data = open_run(RUN or main(["fit", *RECIPE]).run_dir)
result = evaluate(classifier, data)
batch, labels = samples(data, "test", result.indices[result.examples(8)])  # a digit of each class, to begin with
images = data.normalize(batch)
pictures = pixels(batch)
with torch.no_grad():
    answers = classifier(images).softmax(dim=1).max(dim=1)
names = [data.class_names[k] for k in answers.indices]

# %% [markdown]
# ## Attention, back in its place
#
# `record_attention` watches the blocks while the model runs. It changes nothing: the outputs are the same to the last
# bit. For one query, marked in the middle of the image, each head shows where it looks. What stays grey is out of
# reach. The first block of a stage looks inside its plain window, the second across the border, since its windows are
# shifted.

# %%
with torch.no_grad():
    before = classifier(images)
    with record_attention(classifier) as record:
        watched = classifier(images)
print("outputs unchanged:", torch.equal(before, watched))
for block in record.values():
    print(f"{block.name}: map {block.size}, window {block.window}, shift {block.shift}, heads {block.weights.shape[2]}")

# %%
query_figure(pictures[0], list(record.values())[:2], at=(0.5, 0.5))

# %%
plain, shifted = list(record.values())[:2]
H, W = plain.size
for block in (plain, shifted):
    seen = block.of_query(H // 2, W // 2)[0].mean(dim=0)
    print(f"shift {block.shift}: sum {seen.sum():.4f}, above the middle row {seen[: H // 2].sum():.4f}")

# %% [markdown]
# ## How far the heads look
#
# The distance from query to key, weighted by attention. Where all dots of a block lie close together its heads look
# equally far; a head near zero looks at its own token. A window bounds all of them.

# %%
distance_figure(record, backbone_of(classifier).patch_size)

# %% [markdown]
# ## Relative position bias
#
# What a head adds to the score of a key by its place alone, with the query in the middle. It is the part of attention
# that does not depend on the image.

# %%
blocks = dict(swin_blocks(classifier))
name = next(iter(blocks))
bias_figure(blocks[name], name)

# %%
name = list(blocks)[-1]
bias_figure(blocks[name], name)

# %% [markdown]
# ## Rollout and Grad-CAM
#
# Two ways to ask for the whole network. **Rollout** follows attention backwards through all blocks, with half of every
# output coming along the residual path, and ignores what the values and MLPs do with it. **Grad-CAM** weighs the
# channels of a stage by how much they speak for the predicted class, and ignores how they came about. Where both agree,
# one may begin to believe them. The second cell holds both against the ink of the digits: a model this small and this
# briefly trained need not pass.

# %%
rows = {
    "rollout": rollout(classifier, images),
    "Grad-CAM,\nstage 1": grad_cam(classifier, images, stage=0),
    "Grad-CAM,\nlast stage": grad_cam(classifier, images, stage=-1),
}
titles = [f"{name}: {100 * p:.0f} %" for name, p in zip(names, answers.values, strict=True)]
overlay_figure(pictures, rows, titles)

# %%
ink = torch.nn.functional.adaptive_avg_pool2d(batch.float().mean(dim=1), rows["rollout"].shape[1:]).flatten(1)
for name in ("rollout", "Grad-CAM,\nstage 1"):
    pairs = zip(rows[name].flatten(1), ink, strict=True)
    r = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    print(f"{name.split(',')[0]}: correlation with the ink {r.mean():+.2f}, from {r.min():+.2f} to {r.max():+.2f}")

# %% [markdown]
# ## What the stages keep
#
# The channels of every token, reduced to their three strongest directions and shown as red, green and blue: tokens of
# one colour are alike to the network. Colours of different stages have nothing to do with each other.

# %%
with torch.no_grad():
    maps = backbone_of(classifier).feature_maps(images)
features_figure(pictures[0], [stage[0] for stage in maps])

# %%
for i, stage in enumerate(maps, start=1):
    tokens = stage.permute(0, 2, 3, 1).flatten(0, 2)
    strength = torch.linalg.svdvals(tokens - tokens.mean(dim=0)).square()
    share = strength[:3].sum() / strength.sum()
    print(f"stage {i}: three of {len(strength)} components hold {100 * share:.0f} % of the variance")
