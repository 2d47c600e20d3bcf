"""Build the LightningModule that a checkpoint describes, and load its parameters.

Nothing in the file chooses code: see `checkpoint_classes` for the classes that it may name.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from jsonargparse import ArgumentError
from lightning import LightningModule

from swin_lightning.checkpoint_classes import Allowed, check_arguments, find_class
from swin_lightning.errors import UserError, summarize
from swin_lightning.models.state_check import check_state, limit_to_state
from swin_lightning.models.weight_files import read_checkpoint

Module = TypeVar("Module", bound=LightningModule)
CLASS_PATH, INSTANTIATOR = "_class_path", "_instantiator"  # Lightning's entries in the hyperparameters


def load_module(
    path: str | Path,
    cls: type[Module],
    allow: Allowed = (),
    strict: bool | None = None,
    **arguments: Any,
) -> Module:
    """The module of a run's checkpoint, on the CPU, in evaluation mode.

    The averaged (EMA) weights are loaded if the run has them.

    Args:
        path: A checkpoint of `swin-lightning fit`, or of a Trainer.
        cls: The class, or a base of the class that the checkpoint names: `LightningModule` for any.
        allow: Class paths, modules or classes that the checkpoint may name besides those of `swin_lightning`, see
            `checkpoint_classes`; `"my_task.MyTask,my_losses"` is the same as a list.
        strict: Whether all keys must match; by default what the module says (`strict_loading`).
        **arguments: Arguments of the class in place of those in the checkpoint, such as a backbone that was built in
            Python.

    Raises:
        UserError: If the file cannot be read, names a class that is not allowed, or does not fit the class.
    """
    where = f"checkpoint {str(path)!r}"
    content = read_checkpoint(path)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise UserError(f"{where} is not a checkpoint of a run: it has no state_dict")
    stored = stored_arguments(content, where)
    built_by_cli = stored.pop(INSTANTIATOR, None) is not None
    class_path = stored.pop(CLASS_PATH, None)
    target: Any = cls if class_path is None else find_class(class_path, where, [*_entries(allow), cls])
    if not (inspect.isclass(target) and issubclass(target, cls)):
        raise UserError(f"{where}: {class_path} is not a {cls.__name__}")
    stored = {key: value for key, value in stored.items() if key not in arguments}
    check_arguments(target, stored, where, allow)
    with limit_to_state(state, where):
        module: Module = _build(target, class_path, {**stored, **arguments}, built_by_cli, where)
    module.on_load_checkpoint(cast(dict[str, Any], content))
    state = content["state_dict"]
    if module.strict_loading if strict is None else strict:
        state = check_state(state, module, where)
    module.load_state_dict(cast(dict[str, Any], state), strict=bool(strict is None or strict))
    return module.eval()


def stored_arguments(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The hyperparameters in a checkpoint; empty if it has none.

    Raises:
        UserError: If they are not a mapping of names.
    """
    stored = content.get("hyper_parameters") or {}
    if not isinstance(stored, Mapping) or not all(isinstance(name, str) for name in stored):
        raise UserError(f"{where}: its hyper_parameters are not a mapping of names to values")
    return dict(stored)


# helpers


def _entries(allow: Allowed) -> list[str | type]:
    return list(allow.split(",")) if isinstance(allow, str) else list(allow)


def _build(target: Any, class_path: Any, arguments: dict[str, Any], by_cli: bool, where: str) -> Any:
    """The module: by its constructor, or by jsonargparse, if the arguments are those of the command line."""
    from lightning.pytorch.cli import instantiate_module  # not where the package is imported: it is slow

    signature = inspect.signature(target.__init__).parameters.values()
    if not by_cli and not any(parameter.kind == parameter.VAR_KEYWORD for parameter in signature):
        names = {parameter.name for parameter in signature}
        arguments = {key: value for key, value in arguments.items() if key in names}
    try:
        if by_cli:
            path = {} if class_path is None else {CLASS_PATH: class_path}
            return instantiate_module(target, {**path, **arguments})
        return target(**arguments)
    except UserError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        causes = [error, error.__cause__]
        mistake = next((cause for cause in causes if isinstance(cause, UserError)), None)
        if mistake is not None:
            raise mistake from error
        raise UserError(
            f"{where}: {target.__name__} cannot be built from its hyper_parameters ({summarize(error)[:300]})"
        ) from error
