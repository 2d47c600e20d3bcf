"""`swin-lightning report RUN`: results of a run, and attention maps of its model, as one self-contained HTML page."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.class_counts import class_rows, mean_scores
from swin_lightning.data import ImageDataModule
from swin_lightning.errors import CommandParser, UserError, add_allow_option
from swin_lightning.explore.attention_maps import BlockAttention, record_attention, swin_blocks
from swin_lightning.explore.evaluation import Evaluation, evaluate, load_run, load_samples, to_numpy
from swin_lightning.explore.model_figures import (
    bias_figure,
    distance_figure,
    features_figure,
    query_figure,
    saliency_figure,
)
from swin_lightning.explore.result_figures import (
    calibration_figure,
    confusion_figure,
    curves_figure,
    predictions_figure,
)
from swin_lightning.explore.runs import RunLog, read_runs
from swin_lightning.explore.saliency import attention_rollout, find_backbone, grad_cam
from swin_lightning.html_page import code, paragraph, picture, save_page, section, table
from swin_lightning.models import SwinTransformer
from swin_lightning.models.swin import SwinTransformerBlock
from swin_lightning.runs import RunFolder

MAX_CLASSES = 100  # no confusion matrix is drawn for more


@dataclass(frozen=True)
class ModelViews:
    """What a Swin Transformer computes for a few images.

    Attributes:
        images: `S, S, 3` uint8 each.
        titles: Prediction and probability of each image.
        attention: Block name -> attention weights.
        saliency: Method -> maps, `n, H, W`.
        features: Feature map of each stage for the first image, `C, H, W`.
        last_block: Name and module of the last block.
        patch_size: Height and width of a patch in pixels.
    """

    images: list[np.ndarray]
    titles: list[str]
    attention: dict[str, BlockAttention]
    saliency: dict[str, Tensor]
    features: list[Tensor]
    last_block: tuple[str, SwinTransformerBlock]
    patch_size: tuple[int, int]


@dataclass(frozen=True)
class RunReport:
    """Content of the page.

    Attributes:
        run: The run folder.
        log: Logged metrics.
        split: Name of the evaluated split.
        evaluation: Predictions on the split.
        error_images: Images of the most confident errors, `S, S, 3` uint8 each.
        views: Attention and features, None if the model contains no Swin Transformer.
    """

    run: RunFolder
    log: RunLog
    split: str
    evaluation: Evaluation
    error_images: list[np.ndarray]
    views: ModelViews | None


def report(args: list[str]) -> None:
    """Write training curves, confusion matrix, calibration, errors and attention maps of a run as one HTML page."""
    parser = CommandParser("swin-lightning report", description=report.__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, runs/<experiment>/<run>")
    parser.add_argument("--output", metavar="FILE", help="HTML file (default: RUN/report.html)")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="split to evaluate (default: test)")
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="maximum number of images to evaluate (default: 2000)"
    )
    add_allow_option(parser)
    options = parser.parse_args(args)
    if options.images < 1:
        raise UserError(f"--images {options.images} must be at least 1")
    path = write_report(
        compute_report(options.run, options.split, options.images, options.allow_classes), options.output
    )
    print(f"report: {path}")


def compute_report(path: str | Path, split: str = "test", images: int = 2000, allow: Allowed = ()) -> RunReport:
    """Evaluate the best checkpoint of a run and compute what the page shows.

    Args:
        path: The run folder.
        split: Split to evaluate, `test` or `val`.
        images: Maximum number of images to evaluate.
        allow: Classes that the run may name besides those of `swin_lightning`, see `checkpoint_classes`.

    Raises:
        UserError: If the folder is not a run folder, has no checkpoint, or its model cannot be evaluated.
    """
    model, data = load_run(path, allow)
    evaluation = evaluate(model, data, split, images)
    errors = evaluation.errors()[:16]
    error_images = to_numpy(load_samples(data, split, evaluation.indices[errors])[0]) if len(errors) else []
    (log,) = read_runs(path)
    views = compute_views(model, data, evaluation, split)
    return RunReport(RunFolder.open(path), log, split, evaluation, error_images, views)


def compute_views(model: nn.Module, data: ImageDataModule, evaluation: Evaluation, split: str) -> ModelViews | None:
    """Attention, saliency and features for the first image of each class, for up to 8 classes; None without Swin."""
    if not any(isinstance(module, SwinTransformer) for module in model.modules()):
        return None
    positions = evaluation.balanced_sample(8)
    raw, _ = load_samples(data, split, evaluation.indices[positions])
    images, backbone = data.normalize(raw), find_backbone(model)
    with torch.no_grad(), record_attention(model) as attention:
        model(images)
    with torch.no_grad():
        features = [stage[0] for stage in backbone.feature_maps(images)]
    top = evaluation.probabilities[positions].max(dim=1)
    titles = [
        f"{evaluation.class_names[k].split(',')[0][:12]}: {100 * p:.0f} %"
        for k, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    saliency = {"rollout": attention_rollout(model, images), "Grad-CAM": grad_cam(model, images)}
    last_block = swin_blocks(model)[-1]
    return ModelViews(to_numpy(raw), titles, attention, saliency, features, last_block, backbone.patch_size)


def write_report(report: RunReport, output: str | Path | None = None) -> Path:
    """Write the HTML page, by default `report.html` in the run folder; returns its path."""
    config = report.run.read_config()
    shown = {key: config[key] for key in ("seed_everything", "model", "data") if key in config}
    return save_page(
        output or report.run.report,
        report.log.name,
        _summary(report),
        *_curves(report.log),
        *_predictions(report),
        *_views(report.views),
        section("Configuration", code(yaml.safe_dump(shown, sort_keys=False))),
    )


# sections of the page


def _summary(report: RunReport) -> str:
    best, means = report.log.best("val/acc"), mean_scores(report.evaluation.class_counts())
    scores = {
        "split": report.split,
        "images": len(report.evaluation.labels),
        "top-1 (%)": 100 * report.evaluation.accuracy,
        "balanced accuracy (%)": 100 * float(means["acc_balanced"]),
        "macro F1 (%)": 100 * float(means["f1_macro"]),
        "calibration error (%)": 100 * report.evaluation.calibration_error(),
    }
    training = {
        "best val/acc (%)": None if best is None else 100 * best,
        "training (s)": report.log.training_seconds(),
        "images/s": report.log.images_per_second(),
    }
    return "\n".join(table(list(values), [list(values.values())]) for values in (scores, training))


def _curves(log: RunLog) -> list[str]:
    metrics = [name for name in ("train/loss", "val/loss", "val/acc") if name in log.metrics]
    if not metrics:
        return []
    return [section("Training curves", picture(curves_figure([log], metrics), "Loss and accuracy by optimizer step."))]


def _predictions(report: RunReport) -> list[str]:
    evaluation = report.evaluation
    pairs = evaluation.confused_pairs().head(10)
    confusion = [table(list(pairs), pairs.itertuples(index=False, name=None))]
    if len(evaluation.class_names) <= MAX_CLASSES:
        matrix = picture(confusion_figure(evaluation), "Confusion matrix (rows: true, columns: predicted)")
        confusion.insert(0, matrix)
    errors = paragraph("No errors.")
    if report.error_images:
        positions = evaluation.errors()[: len(report.error_images)]
        figure = predictions_figure(evaluation, positions, report.error_images)
        errors = picture(figure, "Most confident errors: prediction, probability, label")
    calibration = picture(
        calibration_figure(evaluation), "Reliability diagram. Above the diagonal the model is underconfident."
    )
    rows = sorted(class_rows(evaluation.class_counts(), evaluation.class_names), key=lambda row: row["f1"])
    shown = f" (the {MAX_CLASSES} with the lowest F1)" if len(rows) > MAX_CLASSES else ""
    return [
        section(f"Classes{shown}", table(list(rows[0]), [list(row.values()) for row in rows[:MAX_CLASSES]])),
        section("Confusion matrix", *confusion),
        section("Most confident errors", errors),
        section("Calibration", calibration),
    ]


def _views(views: ModelViews | None) -> list[str]:
    if views is None:
        return [paragraph("No attention maps: the model contains no Swin Transformer.")]
    blocks = list(views.attention.values())
    first_stage = [block for block in blocks if block.size == blocks[0].size][:2]
    name, last = views.last_block
    return [
        section(
            "Attention",
            picture(
                saliency_figure(views.images, views.saliency, views.titles),
                "Attention rollout, and Grad-CAM of the predicted class.",
            ),
            picture(
                query_figure(views.images[0], first_stage, (0.5, 0.5)),
                "Attention of the marked query token in the first two blocks: regular and shifted windows.",
            ),
            picture(distance_figure(views.attention, views.patch_size), "Mean attention distance per head."),
        ),
        section(
            "Position bias and features",
            picture(bias_figure(last, name), "Relative position bias per head."),
            picture(
                features_figure(views.images[0], views.features),
                "Principal components of the features as RGB: tokens of similar colour have similar features.",
            ),
        ),
    ]
