"""Find host-device synchronisation without a GPU: a Trainer on the meta device, which holds no values.

The host waits for all work queued on a device when it reads a value, when it needs a shape that depends on values, or
when it copies between device and pageable host memory. On the meta device these operations are intercepted, counted
and answered with zeros.

torch has no public API to intercept operators; `torch.utils._python_dispatch` and `torch.utils._pytree` are what
projects outside of torch use for it.
"""

import re
import traceback
from collections import Counter
from contextlib import ExitStack

import torch
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META, aten = torch.device("meta"), torch.ops.aten
SKIPPED_FRAMES = r"/torch/|support/device_sync\.py|<(list|dict|gen)"  # not the code that causes the synchronisation
READ = {aten._local_scalar_dense.default, aten.equal.default}
DATA_DEPENDENT = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.bincount.default}


class MetaAccelerator(CPUAccelerator):
    """Lets a Trainer use the meta device as if it were a GPU."""

    def setup_device(self, device):
        assert device == META


class SyncCounter(Callback):
    """Counts synchronisations by the function that causes them and the operator, for every batch.

    Args:
        device: The device that the host would wait for.

    Attributes:
        steps: One counter for the time before the first batch, then one per training and validation batch.
    """

    def __init__(self, device=META):
        self.device, self.steps = device, [Counter()]

    def fit(self, model, data, callbacks, **options):
        strategy = SingleDeviceStrategy(self.device, MetaAccelerator())
        trainer = Trainer(strategy=strategy, callbacks=[self, *callbacks], enable_model_summary=False, **options)
        with self:
            trainer.fit(model, data)

    def on_train_batch_start(self, *_):
        self.steps.append(Counter())

    on_validation_batch_start = on_train_batch_start

    def __enter__(self):
        self.modes = ExitStack()
        self.modes.enter_context(OperatorMode(self))
        self.modes.enter_context(FactoryMode(self))
        return self

    def __exit__(self, *error):
        self.modes.close()

    def add(self, operator):
        stack = traceback.extract_stack()
        caller = [frame for frame in stack if not re.search(SKIPPED_FRAMES, frame.filename + frame.name)][-1]
        self.steps[-1][f"{caller.name}: {operator}"] += 1


class OperatorMode(TorchDispatchMode):
    """Counts operators that synchronise, and runs them on the meta device as far as it has an answer."""

    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, device = kwargs or {}, self.counter.device
        name = func.overloadpacket.__name__
        if device in {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}:
            if func in READ:
                self.counter.add(name)
                return 0 if device == META else func(*args, **kwargs)
            indices = args[1] if func in (aten.index.Tensor, aten.index_put.default) else []
            masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
            if func in DATA_DEPENDENT or masks:
                self.counter.add(name)
        if func in (aten._to_copy.default, aten.copy_.default):
            in_place = func is aten.copy_.default
            source = args[in_place].device
            target = args[0].device if in_place else kwargs.get("device") or args[0].device
            blocking = not (any(args[2:]) if in_place else kwargs.get("non_blocking"))
            if source != target and device in (source, target):
                if blocking or source == device:
                    self.counter.add(f"{source.type} to {target.type}")
                if source == META:
                    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


class FactoryMode(TorchFunctionMode):
    """Counts `torch.tensor(3.0, device=...)`, which copies from the host; on the meta device no copy is dispatched."""

    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, device = kwargs or {}, self.counter.device
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == device:
            self.counter.add("literal")
        return func(*args, **kwargs)
