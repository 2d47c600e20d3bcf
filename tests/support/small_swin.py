"""Arguments of a small Swin Transformer with visible attention."""

SMALL = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "init_std": 0.5}
