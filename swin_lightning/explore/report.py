"""`swin-lightning report RUN`: a run's results and what its model looks at, on one HTML page that needs no network."""

from pathlib import Path

import torch
import yaml

from swin_lightning.data import ImageDataModule
from swin_lightning.errors import CommandParser, UserError
from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.explore.evaluation import Evaluation, evaluate, open_run, pixels, samples
from swin_lightning.explore.model_figures import (
    bias_figure,
    distance_figure,
    features_figure,
    overlay_figure,
    query_figure,
)
from swin_lightning.explore.result_figures import calibration_figure, confusion_figure, curves_figure, mistakes_figure
from swin_lightning.explore.runs import RunLog, read_runs
from swin_lightning.explore.saliency import backbone_of, grad_cam, rollout
from swin_lightning.html_page import code, paragraph, picture, save_page, section, table
from swin_lightning.models import SwinTransformer
from swin_lightning.tasks.classification import SwinClassifier

MAX_CLASSES = 100  # of a confusion matrix


def report(args: list[str]) -> None:
    """Write a run's curves, confusion, calibration, mistakes and attention as one HTML page."""
    parser = CommandParser("swin-lightning report", description=report.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, runs/<experiment>/<run>")
    parser.add_argument("--output", metavar="FILE", help="the page; RUN/report.html by default")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which images to look at")
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="how many of them at most; 2000 by default"
    )
    options = parser.parse_args(args)
    if options.images < 1:
        raise UserError(f"--images {options.images} must be at least 1")
    path = write_report(options.run, options.output, options.split, options.images)
    print(f"report: {path}")


def write_report(run: str | Path, output: str | Path | None = None, split: str = "test", images: int = 2000) -> Path:
    """Evaluate a run's best checkpoint and write the page; returns its path.

    Args:
        run: The run folder.
        output: Where the page goes; `report.html` in the run folder by default.
        split: Split to evaluate, `test` or `val`.
        images: At most so many images are evaluated.

    Raises:
        ValueError: If the folder is no run, or has no checkpoint.
    """
    run = Path(run)
    classifier, data = open_run(run)
    result = evaluate(classifier, data, split, images)
    (log,) = read_runs(run)
    parts = [*_numbers(log, result, split), *_answers(result, data, split)]
    if any(isinstance(module, SwinTransformer) for module in classifier.modules()):
        parts += _sight(classifier, data, result, split)
    else:
        kind = type(classifier.backbone).__name__
        parts.append(paragraph(f"No attention to show: the backbone is a {kind}, no Swin."))
    config = yaml.safe_load((run / "config.yaml").read_text())
    kept = {key: config[key] for key in ("seed_everything", "model", "data") if key in config}
    parts.append(section("Configuration", code(yaml.safe_dump(kept, sort_keys=False))))
    return save_page(output or run / "report.html", log.name, *parts)


# the sections


def _numbers(log: RunLog, result: Evaluation, split: str) -> list[str]:
    values = {
        f"top-1 of {len(result.labels)} {split} images, %": 100 * result.accuracy,
        "calibration error, %": 100 * result.calibration_error(),
        "best val/acc, %": _percent(log.best("val/acc")),
        "training, s": log.training_seconds(),
        "images per s": log.images_per_second(),
    }
    numbers = table(list(values), [list(values.values())])
    metrics = [name for name in ("train/loss", "val/loss", "val/acc") if name in log.metrics]
    if not metrics:
        return [numbers]
    return [numbers, section("Learning", picture(curves_figure([log], metrics), "Loss and accuracy over the steps."))]


def _answers(result: Evaluation, data: ImageDataModule, split: str) -> list[str]:
    confused = result.confused().head(10)
    confusion = [table(list(confused), confused.itertuples(index=False, name=None))]
    if len(result.class_names) <= MAX_CLASSES:
        matrix = confusion_figure(result)
        confusion.insert(0, picture(matrix, "A row is a true class, a column what the model said."))
    mistakes = paragraph("None.")
    if len(confused):
        worst = mistakes_figure(result, data, split)
        mistakes = picture(worst, "Wrong and sure of it: said with its probability, and what it is.")
    calibration = picture(calibration_figure(result), "Above the line it is more often right than it says.")
    return [section("Confusion", *confusion), section("Mistakes", mistakes), section("Calibration", calibration)]


def _sight(classifier: SwinClassifier, data: ImageDataModule, result: Evaluation, split: str) -> list[str]:
    shown = result.examples(8)
    batch, _ = samples(data, split, result.indices[shown])
    images, photos = data.normalize(batch), pixels(batch)
    with torch.no_grad(), record_attention(classifier) as record:
        classifier(images)
    blocks = list(record.values())
    first = [block for block in blocks if block.size == blocks[0].size][:2]
    answers = result.probabilities[shown].max(dim=1)
    titles = [
        f"{result.class_names[k].split(',')[0][:12]}: {100 * p:.0f} %"
        for k, p in zip(answers.indices.tolist(), answers.values.tolist(), strict=True)
    ]
    maps = {"rollout": rollout(classifier, images), "Grad-CAM": grad_cam(classifier, images)}
    backbone = backbone_of(classifier)
    with torch.no_grad():
        features = [stage[0] for stage in backbone.feature_maps(images)]
    name, last = swin_blocks(classifier)[-1]
    traced = "Attention followed back to the image, and what spoke for the answer."
    looks = "Where the marked token looks, without and with the shift."
    return [
        section(
            "What it looks at",
            picture(overlay_figure(photos, maps, titles), traced),
            picture(query_figure(photos[0], first, (0.5, 0.5)), looks),
            picture(distance_figure(record, backbone.patch_size), "How far the heads of each block look."),
        ),
        section(
            "What it has learned",
            picture(bias_figure(last, name), "What each head adds for the place of a key, seen from the query."),
            picture(features_figure(photos[0], features), "Tokens of one colour are alike to the network."),
        ),
    ]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
