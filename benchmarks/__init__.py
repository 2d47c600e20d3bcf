"""Comparisons of swin_lightning with other implementations; not part of the installed package, see README.md."""
