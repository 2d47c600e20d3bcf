"""Where a program would wait for its GPU, found without one: a Trainer on the meta device, which holds no values.

The host waits for all work that it gave to a device where it reads a value, asks for places whose number depends on
values, or copies from or to memory of its own. On the meta device all that is seen, and answered with zeros.
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
OURS = r"/torch/|tests/waits\.py|<(list|dict|gen)"  # places in a stack that tell nothing
READ = {aten._local_scalar_dense.default, aten.equal.default}
SIZED = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.bincount.default}


class MetaAccelerator(CPUAccelerator):
    """Lets a Trainer take the meta device for a GPU."""

    def setup_device(self, device):
        assert device == META


class Waits(Callback):
    """Counts in `steps`, a step from its batch's start to the next one's, who waited how often, and for what.

    Args:
        device: The device that is waited for.
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
        self._stack = ExitStack()
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Literals(self))
        return self

    def __exit__(self, *error):
        self._stack.close()

    def add(self, why):
        frames = [frame for frame in traceback.extract_stack() if not re.search(OURS, frame.filename + frame.name)]
        who = frames[-1]
        self.steps[-1][f"{who.name}: {why}"] += 1


class _Operations(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, device = kwargs or {}, self.waits.device
        name = func.overloadpacket.__name__
        if device in {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}:
            if func in READ:
                self.waits.add(name)
                return 0 if device == META else func(*args, **kwargs)
            places = args[1] if func in (aten.index.Tensor, aten.index_put.default) else []
            if func in SIZED or any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in places):
                self.waits.add(name)
        if func in (aten._to_copy.default, aten.copy_.default):
            into = func is aten.copy_.default
            source, target = args[into].device, args[0].device if into else kwargs.get("device") or args[0].device
            blocking = not (any(args[2:]) if into else kwargs.get("non_blocking"))
            if source != target and device in (source, target):
                if blocking or source == device:
                    self.waits.add(f"{source.type} to {target.type}")
                if source == META:
                    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """`torch.tensor(3.0, device=...)` copies from the host; the meta device takes it without a copy."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == self.waits.device:
            self.waits.add("literal")
        return func(*args, **kwargs)
