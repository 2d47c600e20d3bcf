"""`swin-lightning predict CHECKPOINT IMAGES...`: classify files, folders and lists of any length into one file."""

import csv
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from swin_lightning.batch import IGNORE_INDEX, Preprocessing
from swin_lightning.callbacks import batch_size as count_images
from swin_lightning.data import ImageDataModule
from swin_lightning.data.layouts import find_images, left_out_note
from swin_lightning.data.readers import FileReader
from swin_lightning.data.sampling import OnBadImage
from swin_lightning.errors import CommandParser, UserError, add_allow_option
from swin_lightning.inference import PrecisionName, Predictor, ProgramPredictor
from swin_lightning.prediction_callbacks import PredictionWriter
from swin_lightning.prediction_file import PredictionFile, Row, columns_of
from swin_lightning.shutdown import Interrupted, Shutdown
from swin_lightning.trainer_precision import default_precision

LISTS = (".csv", ".tsv", ".txt")
PATH_COLUMNS = ("path", "image", "image_path", "file", "filename", "file_name", "filepath")
CHECKED = 8  # rows at each end of a file that are predicted again before it is continued
DESCRIPTION = """Classify images with a checkpoint. Preprocessing and class names are those of the checkpoint; neither
its experiment nor its data are needed. Rows (path, class_1, probability_1, ...) are written while it runs; the same
command continues after an interruption. With -c EXPERIMENT the images are those of a data module:
swin-lightning predict -c EXPERIMENT --help."""


def predict(args: list[str]) -> None:
    """Run the command.

    Raises:
        UserError: For wrong arguments, no images, or an output file that belongs to something else.
    """
    options = build_parser().parse_intermixed_args(args)
    for name in ("top_k", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.num_workers is not None and options.num_workers < 0:
        raise UserError(f"--num_workers {options.num_workers} must be at least 0")
    file = PredictionFile(options.output)
    predictor = Predictor(options.checkpoint, device="cpu", allow=options.allow_classes)
    if isinstance(predictor, ProgramPredictor):
        raise UserError(f"{options.checkpoint}: an exported program; predict with it in Python by Predictor(FILE)")
    if getattr(rank_zero_only, "rank", 0) != 0:  # rank 0 sends the paths
        return _run(predictor, PathList([]), PredictionWriter(file, options.top_k), 0, options)
    paths = PathList(dict.fromkeys(collect(options.images)))
    if not len(paths):
        raise UserError(f"no images in {', '.join(options.images)}")
    with file.lock():
        columns = columns_of(min(options.top_k, len(predictor.class_names)))
        known, todo = _remaining(file, columns, paths)
        if done := len(paths) + len(known) - len(todo):
            print(f"continuing {file.path}: {done} of {len(paths)} images are done", file=sys.stderr, flush=True)
        try:
            _run(predictor, todo, PredictionWriter(file, options.top_k, known), len(paths), options)
        except Interrupted:
            print(f"\n{file.path} is incomplete; the same command continues", file=sys.stderr, flush=True)
            raise


def build_parser() -> CommandParser:
    """The parser of `predict` without an experiment."""
    parser = CommandParser("swin-lightning predict", description=DESCRIPTION)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".ckpt file, or run folder (its best checkpoint)")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help=f"image files, folders with images at any depth, lists of paths ({', '.join(LISTS)}), or - for paths "
        "from standard input",
    )
    parser.add_argument("--output", default="predictions.csv", metavar="FILE", help=".csv or .parquet file "
                        "(default: predictions.csv)")  # fmt: skip
    parser.add_argument("--top_k", type=int, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images per step and device")
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes per device that decode images")
    parser.add_argument(
        "--on_bad_image",
        choices=get_args(OnBadImage),
        default="skip",
        help="skip an unreadable image: it gets no row and is counted at the end (default), or raise an error",
    )
    add_allow_option(parser)
    parser.add_argument("--accelerator", default="auto", help="as trainer.accelerator (default: auto)")
    parser.add_argument("--devices", default="auto", metavar="N", help="as trainer.devices (default: auto)")
    parser.add_argument("--precision", choices=get_args(PrecisionName), help="as trainer.precision")
    return parser


class PathList(Sequence[Path]):
    """Paths in one block of memory. The workers of a loader share it, unlike a list, whose reference counts they write.

    Args:
        paths: The paths.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        ends, block = [0], bytearray()
        for path in paths:
            block += path.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self.block, self.ends = bytes(block), np.array(ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def text(self, index: int) -> str:
        """A path as it was given."""
        return self.block[self.ends[index] : self.ends[index + 1]].decode("utf-8", "surrogateescape")

    def __getitem__(self, index: Any) -> Any:
        return Path(self.text(index))


class ListedImages(ImageDataModule):
    """Images by path, with the pixels of the evaluation of a checkpoint. Rank 0 has the paths.

    Args:
        paths: The images.
        preprocessing: That of the checkpoint.
        **options: Arguments of `ImageDataModule`.
    """

    def __init__(self, paths: PathList, preprocessing: Preprocessing, **options: Any) -> None:
        p = preprocessing
        super().__init__(
            p.image_size, eval_crop=p.crop, eval_crop_ratio=p.crop_ratio, mean=p.mean, std=p.std, **options
        )
        self.paths = paths

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        paths = self.trainer.strategy.broadcast(self.paths)
        self.sources["predict"] = FileReader(paths, [IGNORE_INDEX] * len(paths))


class Progress(Callback):
    """Images, images per second and remaining time on stderr: one line that changes, or a line every 10 seconds.

    Args:
        total: All images.
        done: Images that an earlier run has predicted.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._new, self._since = 0, time.monotonic()
        self._shown_at, self._shown = -1e9, -1
        self._width = 0

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._new += count_images(batch) * trainer.world_size
        now, on_terminal = time.monotonic(), sys.stderr.isatty()
        if trainer.is_global_zero and now - self._shown_at >= (0.2 if on_terminal else 10.0):
            self._shown_at = now
            self._show(now - self._since, "\r" if on_terminal else "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and (sys.stderr.isatty() or self._shown < self._new):
            self._show(time.monotonic() - self._since, "\n")

    def _show(self, seconds: float, end: str) -> None:
        images, self._shown = min(self.done + self._new, self.total), self._new
        rate = self._new / max(seconds, 1e-9)
        left = round((self.total - images) / rate) if rate else 0
        minutes = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        text = f"{images}/{self.total} images  {rate:.1f} images/s  {minutes} left"
        print(text.ljust(self._width), end=end, file=sys.stderr, flush=True)
        self._width = len(text)


def collect(arguments: Iterable[str]) -> Iterator[str]:
    """The images that the arguments mean, in order.

    Raises:
        UserError: If a file or folder does not exist, a list cannot be read, or a folder has no images.
    """
    for argument in arguments:
        path = Path(argument).expanduser()
        if argument == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif path.is_dir():
            found = find_images(path)
            note = left_out_note(found.left_out)
            if not found.paths:
                raise UserError(f"no images in folder {argument!r}{note}")
            if note:
                print(f"{argument}: {len(found.paths)} images{note}", file=sys.stderr, flush=True)
            yield from map(str, found.paths)
        elif not path.is_file():
            raise UserError(f"{argument!r}: no such file or folder")
        elif path.suffix.lower() in LISTS:
            yield from read_list(path)
        else:
            yield str(path)


def read_list(path: Path) -> Iterator[str]:
    """The paths in a list: the column `path` (or `image`, `file`, ...) if there is a header, else the first column.

    Relative paths are looked up in the folder of the list, then in the working directory.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        if path.suffix.lower() == ".txt":
            rows: Iterator[list[str]] = ([line.strip()] for line in file)
        else:
            rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows = (row for row in rows if row and any(row))
        first = next(rows, [])
        header = [cell.strip().lower() for cell in first]
        column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
        if column is None:
            rows, column = itertools.chain([first] if first else [], rows), 0
        for row in rows:
            if len(row) <= column or not row[column]:
                raise UserError(f"{str(path)!r}: no path in row {row}")
            beside = path.parent / row[column]
            yield str(beside if beside.exists() else Path(row[column]))


# helpers


def _remaining(file: PredictionFile, columns: Sequence[str], paths: PathList) -> tuple[dict[str, Row], PathList]:
    """Rows of the file to be compared, by path, and the paths to predict: those of these rows and all without a row."""
    done = {row[0] for row in file.resume(columns)}
    if not done:
        return {}, paths
    texts = [paths.text(i) for i in range(len(paths))]
    both = [text for text in texts if text in done]
    if not both:
        raise UserError(f"--output {str(file.path)!r} has predictions of other images; give another file or remove it")
    checked = {*both[:CHECKED], *deque(both, CHECKED)}
    known = {row[0]: row for row in file.resume(columns) if row[0] in checked}
    return known, PathList([*known, *(text for text in texts if text not in done)])


def _run(predictor: Predictor, paths: PathList, writer: PredictionWriter, total: int, options: Any) -> None:
    data = ListedImages(
        paths,
        predictor.preprocessing,
        eval_batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad_image=options.on_bad_image,
    )
    size = predictor.preprocessing.image_size
    precision: Any = (
        options.precision or default_precision(options.accelerator, predictor.module, size, options.batch_size)[0]
    )
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=int(options.devices) if options.devices.isdecimal() else options.devices,
        precision=precision,
        callbacks=[Shutdown(), writer, Progress(total, total - len(paths))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    predictor.module.compile_backbone = False  # type: ignore[assignment]  # it takes longer than most predictions
    trainer.predict(predictor.module, data, return_predictions=False)
