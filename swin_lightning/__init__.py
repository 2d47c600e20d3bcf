"""Swin Transformer as a PyTorch Lightning research template."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["SwinClassifier", "__version__"]


def __getattr__(name: str) -> Any:
    # on first use: `import swin_lightning.models` must need torch alone
    if name == "SwinClassifier":
        from swin_lightning.tasks.classification import SwinClassifier

        return SwinClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
