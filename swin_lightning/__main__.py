"""`python -m swin_lightning`, which Lightning's launcher calls again for every rank."""

from swin_lightning.cli import console

console()
