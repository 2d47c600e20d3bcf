"""Log messages and warnings of Lightning that are left out, and the handler of our own."""

import logging
import warnings

NOISE = ("💡", "TPU available", "Seed set", "Restoring states", "Loaded model weights", "Found current_model_state")


def drop_noise() -> None:
    """Drop what Lightning says on every run and no user can act on."""
    for message in (
        ".*LeafSpec.*",
        ".torch.jit.[a-z_]+. is deprecated",  # TorchScript files are still in use
        "The number of training batches .* is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",  # that of a resumed run
        "The dirpath has changed",  # a test run has a folder of its own
        "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler knows the position
        r"Found \d+ module\(s\) in eval mode at the start of training",  # frozen modules
        "You requested to overfit but enabled train dataloader shuffling",  # the order is that of an epoch
        "Your `IterableDataset` has `__len__` defined",  # streams divide themselves between the workers
        "When using `Trainer.accumulate_grad_batches != 1.` and overriding",  # the warm-up is per optimizer step
        "It is recommended to use `self.log.'(val|test)/(f1_macro|acc_balanced)'",  # said of a group of one process
        "The .*dataloader.* does not have many workers",  # small data sets are faster without
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_news)
    package = logging.getLogger("swin_lightning")
    if not package.handlers:
        package.setLevel(logging.INFO)
        package.addHandler(logging.StreamHandler())


# helpers


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE)
