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
# # Inside the Swin Transformer
#
# In a Vision Transformer every token attends to every other token, so the cost of attention is quadratic in the number
# of tokens. At 224 x 224 pixels and with patches of 4 x 4 that is already ten million pairs per head and layer. The
# *Swin Transformer* ([Liu et al., 2021](https://arxiv.org/abs/2103.14030)) restricts attention to small windows, and
# shifts the windows in every second block so that information still crosses their borders.
#
# This notebook walks through the implementation in this repository, in the order of the paper. Each claim is verified
# in the cell next to it.

# %%
# %matplotlib inline
from itertools import pairwise

import torch

from swin_lightning.explore.attention_cost import attention_costs
from swin_lightning.explore.figures import sample_photo
from swin_lightning.explore.receptive_field import receptive_fields
from swin_lightning.explore.window_figures import (
    cost_figure,
    mask_figure,
    receptive_field_figure,
    relative_index_figure,
    shift_figure,
    windows_figure,
)
from swin_lightning.models import swin_tiny_patch4_window7_224
from swin_lightning.models.windows import fit_window, relative_position_index, shifted_window_mask

torch.set_num_threads(1)
torch.manual_seed(0)
photo = sample_photo("china", 224)  # one of the two photographs included in scikit-learn
images = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1  # 1, 3, 224, 224
model = swin_tiny_patch4_window7_224().eval()  # Swin-T with random weights; only the architecture matters here

# %% [markdown]
# ## Patch embedding
#
# The image is split into patches of 4 x 4 pixels. A linear layer maps the 48 values of each patch to a token with 96
# channels. This is implemented as a convolution with kernel size 4 and stride 4.

# %%
conv = model.patch_embed.proj
patches = images.unfold(2, 4, 4).unfold(3, 4, 4)  # 1, 3, 56, 56, 4, 4
patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)  # 1, 56, 56, 48
with torch.no_grad():
    linear = patches @ conv.weight.flatten(1).T + conv.bias
    difference = (linear - conv(images).permute(0, 2, 3, 1)).abs().max()
print(f"{conv}\ntoken map: {tuple(linear.shape[1:3])}, maximum difference to the linear layer: {difference:.1e}")
print(f"pairs of tokens: {(56 * 56) ** 2:,}; within windows of 7 x 7: {56 * 56 * 7 * 7:,}")

# %% [markdown]
# ## Regular and shifted windows
#
# Attention is computed within windows of 7 x 7 tokens. With regular windows alone, two neighbours on either side of a
# border would never attend to each other, no matter how many layers follow. Every second block therefore shifts its
# windows by half the window size: 3 tokens. The figure shows the third stage, where a token covers 16 pixels.

# %%
windows_figure(photo, patch_size=16, window=7, shift=3)

# %% [markdown]
# ## The cyclic shift
#
# Shifting the windows would result in 9 windows of different sizes instead of 4 equal ones, which is inefficient to
# batch. The paper rolls the token map up and to the left instead, so that the partial windows of opposite sides form
# full windows. An attention mask then separates regions that are not adjacent in the image.

# %%
shift_figure(photo, patch_size=16, window=7, shift=3)

# %% [markdown]
# ## The attention mask
#
# One 49 x 49 matrix per window; yellow pairs may attend to each other. Only windows that contain regions from opposite
# sides need a mask. In the interior of a larger map all pairs are allowed.

# %%
size, M = (14, 14), 7
window, shift = fit_window(size, M, M // 2)
mask = shifted_window_mask(size, window, shift)
mask_figure(mask, ["upper left window", "upper right window", "lower left window", "lower right window"])

# %% [markdown]
# ## Verification against a naive implementation
#
# Is the masked attention after the cyclic shift equal to attention within the 9 windows of different sizes? The cell
# compares the block with a loop over those windows without any shift, padding or mask. The attention layer also accepts
# smaller windows and then uses the matching part of its bias table.

# %%
block = model.layers[2].blocks[1]  # SW-MSA of the third stage
x = torch.randn(1, 14, 14, 384)
borders = [0, 3, 10, 14]
naive = torch.empty_like(x)
with torch.no_grad():
    for top, bottom in pairwise(borders):
        for left, right in pairwise(borders):
            part = x[:, top:bottom, left:right]
            h, w = part.shape[1:3]
            naive[:, top:bottom, left:right] = block.attn(part.reshape(1, h * w, -1), (h, w)).view_as(part)
    shifted = block.window_attention(x, mask)
    unmasked = block.window_attention(x, None)
print(f"maximum difference with mask:    {(naive - shifted).abs().max():.1e}")
print(f"maximum difference without mask: {(naive - unmasked).abs().max():.1e}")

# %% [markdown]
# ## Relative position bias and the factor 2M-1
#
# A learned bias is added to the attention logits of each pair of tokens. It depends only on their offset (dy, dx). Both
# components range from -(M-1) to M-1, so each has 2M-1 values. The index into the flat bias table is a number in base
# 2M-1 with the digits dy and dx. Without the factor, (2, 1) and (1, 2) would share an entry, as would all offsets on an
# anti-diagonal.

# %%
relative_index_figure(3, relative_position_index(3))

# %%
M = 7
axis = torch.arange(2 * M - 1)
print(f"M = {M}: {(2 * M - 1) ** 2} offsets")
print(f"distinct indices with the factor:    {relative_position_index(M).unique().numel()}")
print(f"distinct indices without it:         {(axis[:, None] + axis[None, :]).unique().numel()}")

# %% [markdown]
# ## The cost of attention
#
# Memory and time of one attention layer of the first stage, measured on this machine. Memory is what the layer saves
# for the backward pass when the attention matrix is materialised, as counted in the paper; time is that of the fused
# forward pass. Doubling the side of the image quadruples the number of tokens: window attention then costs 4 times as
# much, and the matrix of global attention 16 times. The measured totals deviate: less where the linear layers dominate,
# more where the matrix no longer fits into the cache. A fused kernel saves the memory of the matrix, not its
# computation.

# %%
costs = attention_costs([56, 112, 168, 224])
cost_figure(costs)

# %%
table = costs.pivot(index="side", columns="kind", values=["megabytes", "milliseconds"])
(table.loc[224] / table.loc[112]).unstack().round(1)  # ratio of 224 to 112 pixels

# %% [markdown]
# ## Receptive field
#
# The gradient of the centre token with respect to the pixels is exactly zero outside its receptive field. Regular
# windows extend the field up to their borders, shifted windows across them, and each patch merging doubles the size of
# a window in pixels. The field is rectangular and in the first blocks not centred on the token, because the windows are
# at fixed positions.

# %%
fields = receptive_fields(model, images)
receptive_field_figure([f for f in fields if "layers.3" not in f.name][:9], photo, columns=5)

# %%
first = next(field for field in fields if field.influence.min() > 0)
print(f"the receptive field covers the whole image after {first.name}")
