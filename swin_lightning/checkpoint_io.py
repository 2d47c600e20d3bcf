"""Checkpoint files that are written atomically and verified when they are read."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from swin_lightning.checkpoint_files import verify
from swin_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to the disk, then renames it to the target.

    If the process is killed, the disk is full or a mount is lost during the write, the previous checkpoint stays, and
    at no moment is there none. An unfinished file (`.NAME.part`) is overwritten by the next write.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: If it cannot be written; the message says whether the previous one is kept.
        """
        if "://" in str(path):  # object stores show a file only when it is complete
            return super().save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError for a failed write
            part.unlink(missing_ok=True)
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            kept = "the previous one is kept" if target.exists() else "there is no earlier one"
            raise UserError(f"checkpoint {target} cannot be written ({reason or error}); {kept}") from error
        if hasattr(os, "O_DIRECTORY"):  # flush the rename as well, for a power failure
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if "://" not in str(path) and os.path.isfile(path):
            verify(path)
        return super().load_checkpoint(path, map_location, weights_only)


def use_atomic_io(trainer: Trainer) -> None:
    """Let the Trainer write checkpoints atomically, unless it was given a `CheckpointIO`."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
