"""Window attention of Swin V1: multi-head self-attention within windows, with relative position bias.

Shapes: B batch size, C channels, N tokens per window, M side of a full window, nW windows per image, nH heads, D
channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.models.fused_attention import fused_attention_serves
from swin_lightning.models.precision import disable_autocast, is_tracing, to_float32
from swin_lightning.models.windows import Size, gather_position_bias, repeat_for_batch, to_pair


class WindowAttention(nn.Module):
    """Window-based multi-head self-attention (W-MSA) with relative position bias (paper section 3.2).

    The attention matrix of a window is N x N for any image size: memory is linear in H*W instead of quadratic.

    Args:
        dim: Number of input channels.
        window_size: Side M of a full window, or its height and width; the bias table has (2M-1)^2 rows.
        num_heads: Number of attention heads.
        qkv_bias: Add a learnable bias to query, key and value.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the output.
    """

    def __init__(
        self,
        dim: int,
        window_size: Size,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = to_pair(window_size, "window_size")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.allow_fused = True  # see fused_attention.py
        self.make_position_bias()
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def make_position_bias(self) -> None:
        """Create the parameters of the relative position bias: one value per offset and head."""
        M_h, M_w = self.window_size
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * M_h - 1) * (2 * M_w - 1), self.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the relative position bias; the linear layers have a `reset_parameters` of their own."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias_table(self) -> Tensor:
        """Bias of every offset in a full window, `(2M-1)^2, nH`."""
        return self.relative_position_bias_table

    def relative_position_bias(self, window: tuple[int, int]) -> Tensor:
        """Bias of every pair of tokens in a window `(h, w)`, `nH, N, N`; a clamped window uses the table's centre."""
        return gather_position_bias(self.bias_table(), self.window_size, window)

    def attention_bias(self, window: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Relative position bias, -inf where masked; added to the attention scores. `1 or nW, nH, N, N`."""
        bias = self.relative_position_bias(window).unsqueeze(0)
        return bias if mask is None else bias.masked_fill(~mask.unsqueeze(1), float("-inf"))

    def forward(
        self,
        x: Tensor,
        window: tuple[int, int],
        mask: Tensor | None = None,
        shift: tuple[int, int] | None = None,
    ) -> Tensor:
        """Self-attention within each window.

        Args:
            x: Windows, `B*nW, N, C`; with `shift` the feature map before padding and shift, `B, H, W, C`.
            window: Height and width of the windows, `h * w == N`.
            mask: True where attention is allowed, `nW, N, N` bool (`windows.shifted_window_mask`); None for everywhere.
            shift: Attend within the shifted windows of a map, for which `serves_map` must be true.

        Returns:
            `B*nW, N, C`, or `B, H, W, C`.
        """
        if shift is not None:
            return self._attend_in_map(x, window, shift)
        q, k, v = self.project_qkv(x)
        attn_bias = self.attention_bias(window, mask).to(q.dtype)  # in float32 the repeated bias is twice as large
        attn_bias = repeat_for_batch(attn_bias, x.shape[0])  # 1 or B*nW, nH, N, N
        return self._merge_heads(self.scaled_dot_product_attention(q, k, v, attn_bias))

    def serves_map(self, x: Tensor, window: tuple[int, int]) -> bool:
        """Whether `forward` takes the feature map `x` with a shift: where the fused operator is at hand, and fits."""
        if not self.allow_fused or (self.training and self.attn_drop):
            return False
        return fused_attention_serves(x, window, x.shape[-1] // self.num_heads, self.head_scale() is not None)

    def packed_qkv(self, x: Tensor) -> Tensor:
        """Query, key and value of every token as the linear layer leaves them, `..., 3, nH, D`."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # type: ignore[no-any-return]

    def head_scale(self) -> Tensor | None:
        """Scale of the cosine similarity per head, `nH`; None for the scaled dot product."""
        return None

    def _attend_in_map(self, x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        from swin_lightning.models.window_attention_triton import window_attention  # needs triton

        bias = self.relative_position_bias(window)
        x = window_attention(self.packed_qkv(x), bias, window, shift, self.scale, self.head_scale())  # B, H, W, nH, D
        out: Tensor = self.proj_drop(self.proj(x.flatten(3)))
        return out

    def attention_weights(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """The attention weights of `forward`, `B*nW, nH, N, N`, computed explicitly for visualisation and tests."""
        q, k, _ = self.project_qkv(x)
        with disable_autocast(x):
            scores = to_float32(q * self.scale) @ to_float32(k).transpose(-2, -1)  # B*nW, nH, N, N
            return (scores + repeat_for_batch(self.attention_bias(window, mask), x.shape[0])).softmax(dim=-1)

    def forward_eager(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """`forward` computed from `attention_weights`; the reference implementation for tests."""
        v = self.project_qkv(x)[2]
        return self._merge_heads((self.attention_weights(x, window, mask).to(v.dtype) @ v).to(x.dtype))

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, each `B*nW, nH, N, D`."""
        q, k, v = self.packed_qkv(x).unbind(2)  # B*nW, N, nH, D; gradients are stacked in the layout of qkv
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def scaled_dot_product_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor) -> Tensor:
        """`softmax(q k^T * scale + attn_bias) v`, `B*nW, nH, N, D`."""
        dropout = self.attn_drop if self.training else 0.0
        # SDPA on CPU has no fused kernel with a bias gradient; a trace is for inference
        if attn_bias.requires_grad and q.device.type == "cpu" and not is_tracing():
            weights = torch.add(attn_bias, q @ k.transpose(-2, -1), alpha=self.scale).softmax(dim=-1)
            return F.dropout(weights, dropout).to(v.dtype) @ v
        v = v.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, dropout_p=dropout, scale=self.scale)

    def _merge_heads(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # B*nW, N, C
        return out
