"""Compare the state dict in a file with a model: its size while the model is built, and its entries before loading.

A file chooses the sizes of the model that is built for it. `limit_to_state` stops a model that needs more than the file
holds, before its memory is taken.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from swin_lightning.errors import UserError
from swin_lightning.models.weight_errors import describe_mismatch, invalid_values

SLACK = 2**24  # elements beside the parameters: tables, masks, states of metrics
MORE_ENTRIES = 1000  # parameters that a file may lack, such as those of a loss
SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye)  # called with sizes
COUNTED = (torch.full, torch.arange, torch.linspace, torch.randperm, torch.randint)


def check_state(state: Any, model: nn.Module, where: str) -> dict[str, Tensor]:
    """The state dict of a file, if all of it fits the model.

    Args:
        state: What the file has as its state dict.
        model: The model that is to load it.
        where: The file, for messages.

    Raises:
        UserError: If keys or shapes differ, or a tensor is not a dense tensor of the right kind, or a parameter is not
            finite. Nothing has been loaded then.
    """
    own = model.state_dict()
    if not isinstance(state, Mapping):
        raise UserError(f"{where} has no state dict, but a {type(state).__name__}")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wrong = []
    for key, value in tensors.items():
        if not isinstance(own.get(key), Tensor):
            continue
        if problem := invalid_values(value, own[key], finite=key in parameters):
            raise UserError(f"{where}: {key} {problem}")
        if value.shape != own[key].shape:
            wrong.append(f"{key} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}")
    expected = [key for key, value in own.items() if isinstance(value, Tensor)]
    if problems := describe_mismatch(expected, tensors, wrong):
        raise UserError(f"{where} does not fit {type(model).__name__}: {problems}")
    return tensors


@contextmanager
def limit_to_state(state: Any, where: str) -> Iterator[None]:
    """Modules that are built in this block may not be much larger than the state dict of a file.

    Raises:
        UserError: If a module has more or larger parameters, before their memory is allocated.
    """
    tensors = [value for value in state.values() if isinstance(value, Tensor)] if isinstance(state, Mapping) else []
    sizes = [value.numel() for value in tensors]
    limit, registered = _SizeLimit(max(sizes, default=0) + SLACK, where), [0, 0]
    total, entries = sum(sizes) + SLACK, len(sizes) + MORE_ENTRIES

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        registered[0] += 1
        registered[1] += parameter.numel() if isinstance(parameter, Tensor) else 0
        if registered[0] > entries or registered[1] > total:
            raise UserError(f"{where} describes a larger model than it holds: more than its {len(sizes)} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with limit:
            yield
    finally:
        hook.remove()


class _SizeLimit(TorchFunctionMode):
    """Refuses to create a tensor with more elements than a limit."""

    def __init__(self, limit: int, where: str) -> None:
        super().__init__()
        self.limit, self.where = limit, where

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in SIZED or func in COUNTED:
            sizes = [*args, options.get("size", 0)]
            product = _product(sizes) if func in SIZED else max(map(abs, _integers(sizes)), default=0)
            if func is torch.eye and len(args) == 1:
                product **= 2
            if product > self.limit:
                raise UserError(f"{self.where} describes a larger model than it holds: a tensor of {product} elements")
        return func(*args, **options)


def _integers(values: Iterable[Any]) -> list[int]:
    nested = [_integers(value) if isinstance(value, list | tuple) else [value] for value in values]
    return [value for part in nested for value in part if isinstance(value, int) and not isinstance(value, bool)]


def _product(values: Iterable[Any]) -> int:
    product = 1
    for value in _integers(values):
        product *= max(value, 1)
    return product
