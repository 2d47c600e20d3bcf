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
# # Swin from the inside
#
# A vision transformer compares every token of an image with every other one. The number of pairs grows with the square
# of the pixels, and at 224 pixels with tokens of 4 x 4 that is already ten million pairs a head and layer. *Swin
# Transformer* ([Liu et al., 2021](https://arxiv.org/abs/2103.14030)) compares inside small windows only, and moves the
# windows from layer to layer so that information still crosses the whole image.
#
# This notebook takes the network of this repository apart, in the order of the paper. Every claim is computed in the
# cell beside it.

# %%
# %matplotlib inline
from itertools import pairwise

import torch

from swin_lightning.explore.attention_cost import attention_costs
from swin_lightning.explore.figures import photograph
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
photo = photograph("china", 224)  # one of the two photographs that scikit-learn ships
images = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1  # 1, 3, 224, 224
model = swin_tiny_patch4_window7_224().eval()  # Swin-T, untrained: here only its construction matters

# %% [markdown]
# ## Patches: a convolution whose stride is its kernel size
#
# The image is cut into patches of 4 x 4 pixels; each becomes a token of 96 channels by one linear map of its 48
# numbers. A convolution with kernel 4 and stride 4 does exactly that.

# %%
conv = model.patch_embed.proj
patches = images.unfold(2, 4, 4).unfold(3, 4, 4)  # 1, 3, 56, 56, 4, 4
patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)  # 1, 56, 56, 48
with torch.no_grad():
    by_hand = patches @ conv.weight.flatten(1).T + conv.bias
    difference = (by_hand - conv(images).permute(0, 2, 3, 1)).abs().max()
print(f"{conv}\nmap of tokens: {tuple(by_hand.shape[1:3])}, largest difference to a linear map: {difference:.1e}")
print(f"pairs of tokens: {(56 * 56) ** 2:,}; inside windows of 7 x 7: {56 * 56 * 7 * 7:,}")

# %% [markdown]
# ## Windows, and why they move
#
# Attention runs inside windows of 7 x 7 tokens. Two neighbours on either side of a border would never meet, however
# many such layers follow. So every second block moves its windows by half their size: 3 tokens, here 3 of the 16-pixel
# tokens of the third stage.

# %%
windows_figure(photo, patch_size=16, window=7, shift=3)

# %% [markdown]
# ## The cyclic shift, step by step
#
# Shifted windows would leave narrow ones at the rim: 9 in place of 4, of unequal size, which computes badly. The trick
# of the paper is to roll the map up and left, so that the rests from opposite sides fill up full windows. A mask then
# separates what only the roll has brought together.

# %%
shift_figure(photo, patch_size=16, window=7, shift=3)

# %% [markdown]
# ## The mask as matrices
#
# One matrix a window, 49 x 49: yellow pairs may attend to each other. Only windows that contain a seam have a mask;
# away from the rim of a larger map there is nothing to forbid.

# %%
size, M = (14, 14), 7
window, shift = fit_window(size, M, M // 2)
mask = shifted_window_mask(size, window, shift)
mask_figure(mask, ["upper left window", "upper right window", "lower left window", "lower right window"])

# %% [markdown]
# ## The same number by the naive way
#
# Is the masked, rolled computation really that of unequal windows? Here are both: the block's own path, and a loop over
# the nine rests that pads nothing, rolls nothing and masks nothing. The attention layer takes a smaller window as it is
# and reads the matching part of its bias table.

# %%
block = model.layers[2].blocks[1]  # SW-MSA of the third stage
x = torch.randn(1, 14, 14, 384)
cuts = [0, 3, 10, 14]
naive = torch.empty_like(x)
with torch.no_grad():
    for top, bottom in pairwise(cuts):
        for left, right in pairwise(cuts):
            rest = x[:, top:bottom, left:right]
            h, w = rest.shape[1:3]
            naive[:, top:bottom, left:right] = block.attn(rest.reshape(1, h * w, -1), (h, w)).view_as(rest)
    shifted = block.window_attention(x, mask)
    unmasked = block.window_attention(x, None)
print(f"largest difference with the mask: {(naive - shifted).abs().max():.1e}")
print(f"and if one forgets it:            {(naive - unmasked).abs().max():.1e}")

# %% [markdown]
# ## Relative positions, and the factor 2M-1
#
# Each pair of tokens gets a learned bias that depends on their offset (dy, dx) alone. Both lie between -(M-1) and M-1,
# which makes 2M-1 values each. To find a pair's bias in a flat table, dy and dx become the two digits of one number in
# base 2M-1. Without the factor, (2, 1) and (1, 2) would share a bias, and so would all offsets of one anti-diagonal.

# %%
relative_index_figure(3, relative_position_index(3))

# %%
M = 7
axis = torch.arange(2 * M - 1)
print(f"M = {M}: {(2 * M - 1) ** 2} offsets")
print(f"different entries with the factor:    {relative_position_index(M).unique().numel()}")
print(f"different entries of the plain sum:   {(axis[:, None] + axis[None, :]).unique().numel()}")

# %% [markdown]
# ## What windows save
#
# One attention layer of the first stage, on this machine, with gradients kept as the paper's accounting has it (the
# attention written out as a matrix), and the fused forward pass. Doubling the side of the image quadruples the tokens.
# Windows then cost four times as much, the global matrix sixteen times: less in all where the linear layers still weigh
# in, more in time where the matrix has outgrown the caches. A fused kernel spares the memory of the matrix, but no
# time.

# %%
costs = attention_costs([56, 112, 168, 224])
cost_figure(costs)

# %%
table = costs.pivot(index="side", columns="kind", values=["megabytes", "milliseconds"])
(table.loc[224] / table.loc[112]).unstack().round(1)  # from 112 to 224 pixels: how many times as much

# %% [markdown]
# ## How far a token sees
#
# The gradient of the middle token on the pixels is exactly zero wherever it cannot see. Plain windows widen the view
# only to their own border, shifted ones cross it, and merging doubles what a window covers. The field is never round
# and, at first, not centred on its token: the windows lie where they lie.

# %%
fields = receptive_fields(model, images)
receptive_field_figure([f for f in fields if "layers.3" not in f.name][:9], photo, columns=5)

# %%
first = next(field for field in fields if field.influence.min() > 0)
print(f"the middle token sees every pixel after {first.name}")
