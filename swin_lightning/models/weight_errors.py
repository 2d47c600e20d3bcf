"""What does not fit between a file of weights and a model, and what to do about it."""

from collections.abc import Collection
from difflib import get_close_matches

import torch
from torch import Tensor


def describe_mismatch(expected: Collection[str], found: Collection[str], wrong_shapes: list[str]) -> str:
    """Missing and unexpected keys, each missing one beside the closest unexpected one, and wrong shapes, shortened.

    Args:
        expected: Keys that the file should have.
        found: Keys that it has.
        wrong_shapes: Messages about wrong shapes.

    Returns:
        An empty string if there is no mismatch.
    """
    unexpected = [key for key in found if key not in expected]
    missing = sorted(key for key in expected if key not in found)
    shown = [f"missing {key}{_closest(key, unexpected)}" for key in missing[:2]]
    shown += [f"unexpected {key}" for key in unexpected[:2]] + wrong_shapes[:2]
    more = len(missing) + len(unexpected) + len(wrong_shapes) - len(shown)
    return "; ".join(shown + [f"and {more} more"] * (more > 0))


def suggest_model(own: Collection[str], found: Collection[str]) -> str:
    """The remedy if the file is of the other version of Swin, or of another size, or an empty string."""
    file_v2, own_v2 = (any("logit_scale" in key for key in keys) for keys in (found, own))
    file_v1, own_v1 = (any("relative_position_bias_table" in key for key in keys) for keys in (found, own))
    if (file_v1 and own_v2) or (file_v2 and own_v1):
        versions = ("V1", "swin_*", "V2") if file_v1 else ("V2", "swinv2_*", "V1")
        return ". The file holds Swin {}: use a backbone {}, not Swin {}".format(*versions)
    return ""


def invalid_values(value: Tensor, own: Tensor, finite: bool = True) -> str | None:
    """Why a tensor of a file cannot be loaded, or None: parameters are dense, finite floating-point numbers.

    Args:
        value: The tensor.
        own: The parameter or buffer that it is for.
        finite: Whether it has to be finite; the masks among buffers are not.
    """
    if value.layout != torch.strided or value.is_meta:
        return f"is {'a meta' if value.is_meta else 'a sparse'} tensor; save the parameters as dense tensors"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "repeats the same elements in memory; save the parameters as dense tensors"
    if value.is_quantized or (own.is_floating_point() != value.is_floating_point()) or value.is_complex():
        return f"has dtype {str(value.dtype).removeprefix('torch.')}; save the parameters as floating-point numbers"
    if finite and value.is_floating_point() and not value.isfinite().all():
        return "contains NaN or infinite values; use a checkpoint from before the training diverged"
    return None


def _closest(key: str, unexpected: list[str]) -> str:
    found = get_close_matches(key, unexpected, n=1)
    return f" (closest in the file: {found[0]})" if found else ""
