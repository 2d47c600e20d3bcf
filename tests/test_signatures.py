"""Parameters of classes and functions with types and descriptions."""

import inspect

from lightning import Trainer

from swin_lightning import SwinClassifier
from swin_lightning.data import CIFAR100
from swin_lightning.models import SwinTransformer, swin_tiny_patch4_window7_224
from swin_lightning.options import type_text
from swin_lightning.ranges import LearningRate
from swin_lightning.signatures import first_sentence, parameters


def test_first_sentence():
    assert first_sentence("Size, e.g. 3 pixels. It counts.") == "Size, e.g. 3 pixels."
    assert first_sentence("Values: `a` (0.5), `b`. `a` is faster.") == "Values: `a` (0.5), `b`."
    assert first_sentence("No period") == "No period"


def test_parameters_of_a_class_and_its_bases():
    found = parameters(SwinClassifier)
    assert found["label_smoothing"].default == 0.0
    assert found["lr"].type is LearningRate and found["lr"].default == 1e-3  # of Task
    assert "learning rate" in found["lr"].description
    assert found["backbone"].required and not found["lr"].required
    assert "task" not in found and "self" not in found
    # a parameter that only a base documents
    assert parameters(CIFAR100)["path"].default == "uoft-cs/cifar100" and parameters(CIFAR100)["path"].description


def test_parameters_of_a_function_are_those_it_passes_on():
    found = parameters(swin_tiny_patch4_window7_224)
    assert (
        found["drop_path_rate"].default
        == inspect.signature(swin_tiny_patch4_window7_224).parameters["drop_path_rate"].default
    )
    ratio = found["mlp_ratio"]  # of SwinTransformer
    assert type_text(ratio.type) == "float > 0 <= 64" and ratio.description
    assert not {"embed_dim", "depths", "window_size"} & set(found)  # set by the function
    assert set(found) < set(parameters(SwinTransformer))


def test_descriptions_have_no_markup():
    texts = {name: parameter.description for name, parameter in parameters(Trainer).items()}
    assert texts["max_time"].startswith(
        "Stop training after this amount of time has passed. Disabled by default (`None`)"
    )
    assert not any(":class:" in text or "``" in text or "\n" in text for text in texts.values())
