"""CIFAR-10 and CIFAR-100, decoded once and kept in memory."""

from typing import Any, Literal

import numpy as np

from swin_lightning.data.cifar_batches import find_batches, read_batches
from swin_lightning.data.hub_download import load_hub_dataset
from swin_lightning.data.hub_reader import HuggingFaceReader, find_columns, find_split
from swin_lightning.data.image_datamodule import Mean, Std
from swin_lightning.data.readers import ArrayReader, Reader
from swin_lightning.data.split_datamodule import HeldOut, SplitDataModule
from swin_lightning.data.splits import number_held_out
from swin_lightning.errors import UserError
from swin_lightning.ranges import ImageSide, Share, check_arguments

COARSE_NAMES = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices "
    "household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes "
    "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees "
    "vehicles_1 vehicles_2"
).split()


class CIFAR10(SplitDataModule):
    """50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.

    Args:
        path: Hub name; a local folder in the same layout (`<any folder>/{train,test}-*.parquet`); or the folder of
            torchvision, which holds `cifar-10-batches-py` or `cifar-100-python`.
        val_size: Share or number of training images held out for validation; 0 validates on the test split. They are
            drawn without regard to the classes, as in all results of this project.
        image_size: Side length in pixels; images are resized unless it is 32.
        mean: Per-channel mean in [0, 1], computed over the training split.
        std: Per-channel standard deviation.
        eval_crop_ratio: Center crop of evaluation, relative to the resized image.
        **base: Arguments of `SplitDataModule`.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    label_column: str | None = None
    class_names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

    def __init__(
        self,
        path: str = "uoft-cs/cifar10",
        val_size: HeldOut = 5000,
        image_size: ImageSide = 32,
        mean: Mean = (0.4914, 0.4822, 0.4465),
        std: Std = (0.2470, 0.2435, 0.2616),
        eval_crop_ratio: Share = 1.0,
        **base: Any,
    ) -> None:
        check_arguments(CIFAR10.__init__, locals(), "data.")
        base |= {"val_size": val_size or None}
        super().__init__(image_size=image_size, mean=mean, std=std, eval_crop_ratio=eval_crop_ratio, **base)
        self.path, self.validates_on_test = path, val_size == 0

    def prepare_data(self) -> None:
        if find_batches(self.path) is None:
            load_hub_dataset(self.path)

    def found_splits(self) -> set[str]:
        return {"train", "val", "test"} if self.validates_on_test else {"train", "test"}

    def read(self, split: str) -> Reader:
        if batches := find_batches(self.path):
            return ArrayReader(*read_batches(batches, split, self.label_column, self.num_classes))
        dataset = load_hub_dataset(self.path)
        name = find_split(dataset, ["train" if split == "train" else "test"], self.path)
        rows = dataset[name]
        reader = HuggingFaceReader(rows, self.path, find_columns(rows.features, self.path, label=self.label_column))
        found = reader.columns.class_names
        if found is not None and len(found) != self.num_classes:
            raise UserError(
                f"data.path: {self.path!r} has {len(found)} classes; {type(self).__name__} expects {self.num_classes}"
            )
        return _decode_all(reader)

    def hold_out_val(
        self, labels: np.ndarray, size: float, groups: np.ndarray | None, of: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if groups is not None:
            return super().hold_out_val(labels, size, groups, of)
        number = number_held_out(size, len(labels), 1, "data.val_size")
        order = np.random.default_rng(self.split_seed).permutation(len(labels))
        return np.sort(order[number:]), np.sort(order[:number])


class CIFAR100(CIFAR10):
    """50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes, or 20 groups of classes.

    Args:
        label_column: `fine_label` or `coarse_label`.
        path: As in `CIFAR10`.
        mean: Per-channel mean in [0, 1].
        std: Per-channel standard deviation.
        **base: Arguments of `CIFAR10`.
    """

    class_names = (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    ).split()

    def __init__(
        self,
        path: str = "uoft-cs/cifar100",
        label_column: Literal["fine_label", "coarse_label"] = "fine_label",
        mean: Mean = (0.5071, 0.4865, 0.4409),
        std: Std = (0.2673, 0.2564, 0.2762),
        **base: Any,
    ) -> None:
        super().__init__(path=path, mean=mean, std=std, **base)
        self.label_column = label_column
        if label_column == "coarse_label":
            self.class_names = COARSE_NAMES


def _decode_all(reader: HuggingFaceReader) -> ArrayReader:
    images, labels = zip(*(reader[i] for i in range(len(reader))), strict=True)
    return ArrayReader(np.stack(images), np.array(labels))
