"""Swin Transformer as a PyTorch Lightning research template."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["SimMIM", "SwinClassifier", "Task", "__version__"]


def __getattr__(name: str) -> Any:
    # on first use: `import swin_lightning.models` must need torch alone
    if name in ("SimMIM", "SwinClassifier", "Task"):
        import swin_lightning.tasks

        return getattr(swin_lightning.tasks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
