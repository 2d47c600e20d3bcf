"""What notebooks and report show: measurements against their definitions, figures whose texts do not overlap."""

import csv
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from torch import nn

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.explore import model_figures, result_figures, window_figures
from swin_lightning.explore.attention_cost import attention_costs, kept_bytes
from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.explore.evaluation import Evaluation, evaluate, open_run, pixels, samples
from swin_lightning.explore.figures import image_sheet, photograph
from swin_lightning.explore.receptive_field import receptive_fields
from swin_lightning.explore.runs import RunLog, all_metrics, differences, markdown_row, read_runs, read_wandb, results
from swin_lightning.explore.saliency import grad_cam, rollout
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.windows import relative_position_index, shifted_window_mask
from tests.support.cli import DIGITS, SHORT

SMALL = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "init_std": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with the offline files of W&B."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("explore"))
        patch.setenv("WANDB_MODE", "offline")
        cli = main(["fit", "-c", DIGITS, *SHORT, "--trainer.max_epochs=2"])
        return cli.run_dir.resolve()


# receptive field and costs


@pytest.mark.parametrize("size", [(24, 24), (20, 28)])
def test_a_token_sees_exactly_what_windows_shifts_and_merging_bring_it(size):
    model = SwinTransformer(**SMALL).eval()
    H, W = size[0] // 2, size[1] // 2
    sees = {(y, x): {(y, x)} for y, x in itertools.product(range(H), range(W))}  # token -> patches
    expected = [sees[H // 2, W // 2]]
    for stage in range(2):
        for shift in (0, 2):
            sy, sx = (shift if H > 4 else 0), (shift if W > 4 else 0)
            windows = {}
            for y, x in sees:  # a shifted window never wraps: its number is not reduced by the roll
                windows.setdefault(((y - sy) // min(4, H), (x - sx) // min(4, W)), []).append((y, x))
            sees = {t: set().union(*(sees[u] for u in tokens)) for tokens in windows.values() for t in tokens}
            expected.append(sees[H // 2, W // 2])
        if stage == 0:
            H, W = -(-H // 2), -(-W // 2)
            joined = {(y, x): set() for y, x in itertools.product(range(H), range(W))}
            for (y, x), patches in sees.items():
                joined[y // 2, x // 2] |= patches
            sees = joined
            expected.append(sees[H // 2, W // 2])
    fields = receptive_fields(model, torch.randn(1, 3, *size))
    names = ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "layers.0.downsample", "layers.1.blocks.0"]
    assert [field.name for field in fields] == [*names, "layers.1.blocks.1"]
    for field, patches in zip(fields, expected, strict=True):
        seen = {(int(y) // 2, int(x) // 2) for y, x in (field.influence > 0).nonzero()}
        assert seen == patches, field.name
    assert fields[1].extent == (8, 8)
    assert not any(m._forward_hooks for m in model.modules())


def test_costs_grow_with_the_tokens_in_windows_and_with_their_square_globally():
    costs = attention_costs([56, 112], dim=96, num_heads=3, repeats=1)
    assert costs["tokens"].tolist() == [196, 196, 784, 784]
    kept = costs.pivot(index="side", columns="kind", values="megabytes")
    matrices = {side: 4e-6 * 3 * (side // 4) ** 4 for side in (56, 112)}
    assert kept["window"][112] / kept["window"][56] == pytest.approx(4, rel=0.1)
    assert all(kept["global"][side] > matrices[side] for side in matrices)
    assert kept["global"][112] / kept["global"][56] > 9
    assert (costs["milliseconds"] > 0).all()


def test_kept_bytes_counts_each_memory_once():
    x = torch.randn(100, requires_grad=True)
    assert kept_bytes(lambda: x.exp()) == 400  # its result
    assert kept_bytes(lambda: x.exp().view(10, 10).exp()) == 800
    assert kept_bytes(lambda: x.exp().square()) == 400  # both keep the same tensor
    assert kept_bytes(lambda: x + 1) == 0


# evaluation


def evaluation(probabilities, labels):
    return Evaluation(
        torch.tensor(probabilities), torch.tensor(labels), ["a", "b", "c"], torch.arange(10, 10 + len(labels))
    )


def test_confusion_and_the_worst_mistakes():
    rows = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.1, 0.1, 0.8]]
    result = evaluation(rows, [0, 0, 2, 2, 2])
    assert result.confusion().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert result.accuracy == pytest.approx(0.4)
    assert result.mistakes().tolist() == [2, 1, 3]  # 80, 70, 50 % sure
    pairs = result.confused().values.tolist()
    assert pairs == [["a", "b", 1], ["c", "a", 1], ["c", "b", 1]]
    assert result.examples(4).tolist() == [0, 2, 1, 3]  # a, c, a, c


def test_calibration_is_that_of_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities = (2 * torch.randn(500, 3)).softmax(dim=1)
    labels = torch.randint(3, (500,))
    result = Evaluation(probabilities, labels, list("abc"), torch.arange(500))
    expected = multiclass_calibration_error(probabilities, labels, num_classes=3, n_bins=10)
    assert result.calibration_error() == pytest.approx(float(expected), abs=1e-6)
    assert result.calibration()["images"].sum() == 500


def test_a_run_is_opened_and_measures_what_it_has_logged(run):
    classifier, data = open_run(run)
    assert not classifier.training
    result = evaluate(classifier, data)
    (log,) = read_runs(run)
    assert result.accuracy == pytest.approx(log.last("test/acc"))
    assert len(result.labels) == 360
    some = evaluate(classifier, data, "val", limit=10)
    assert some.indices.tolist() == [0, 20, 40, 60, 80, 99, 119, 139, 159, 179]
    images, labels = samples(data, "val", some.indices)
    assert torch.equal(labels, some.labels) and images.shape == (10, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(classifier(data.normalize(images)).softmax(dim=1), some.probabilities)


# runs


def test_a_run_reads_the_same_from_its_folder_and_from_its_offline_wandb_files(run, tmp_path):
    (log,) = read_runs(run.parent)
    (offline,) = read_runs(run / "wandb")
    assert log.name == offline.name == f"digits_swin_micro/{run.name}"
    pd.testing.assert_frame_equal(log.metrics, offline.metrics, check_dtype=False, rtol=1e-5)
    keys = ("model.lr", "data.batch_size", "seed_everything", "trainer.max_epochs")
    assert [log.config[key] for key in keys] == [offline.config[key] for key in keys] == [0.002, 32, 0, 2]
    assert log.images_per_second() == pytest.approx(offline.images_per_second(), rel=1e-4)
    both = all_metrics([log, RunLog("other/run", offline.config, offline.metrics)])
    both.to_csv(tmp_path / "all.csv", index=False)
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {log.name, "other/run"} and len(rows) == 2 * len(log.metrics)


def logged(name="experiment/run", config=None, **columns):
    return RunLog(name, {"data.batch_size": 10, "seed_everything": 3} | (config or {}), pd.DataFrame(columns))


def test_time_and_speed_count_the_images_between_two_rows():
    nan = math.nan
    log = logged(step=[4, 9, 9, 11], **{"train/images_per_s": [50.0, nan, nan, 20.0], "val/loss": [nan, 1.0, nan, nan]})
    # 5 steps at 50 images per s and, after the validation at step 9, 2 steps at 20: 70 images in 2 s
    assert log.images_per_second() == pytest.approx(35.0)
    assert log.training_seconds() == pytest.approx(12 * 10 / 35.0)
    assert logged(step=[1]).training_seconds() is None


def test_results_tell_what_differs_best_last_and_test():
    logs = [
        logged("e/one", {"model.lr": 0.1, "model.weight_decay": 0.05}, step=[0, 1, 2], **{"val/acc": [0.1, 0.9, 0.8]}),
        logged("e/two", {"model.lr": 0.2, "model.weight_decay": 0.05}, step=[0], **{"test/acc": [0.7]}),
    ]
    assert differences(logs) == [{"model.lr": 0.1}, {"model.lr": 0.2}]
    table = results(logs)
    assert table.loc["e/one", ["model.lr", "best val/acc", "last val/acc"]].tolist() == [0.1, 0.9, 0.8]
    assert math.isnan(table.loc["e/one", "test/acc"]) and table.loc["e/two", "test/acc"] == 0.7


def test_the_markdown_row_fits_the_table_of_results():
    log = logged(
        step=[0, 2999], **{"test/acc": [None, 0.97777], "test/acc5": [None, 1.0], "train/images_per_s": [50, 50]}
    )
    row = markdown_row(log, "2 cores")
    assert row == "| `experiment` | 97.78 % | 100.00 % | 3 | 10.0 min | 2 cores | [csv](logs/experiment.csv) |"
    with pytest.raises(ValueError, match="run experiment/run has no test/acc"):
        markdown_row(logged(step=[0]), "2 cores")


def test_runs_of_a_project_come_from_the_server(monkeypatch):
    import wandb

    class FakeRun:
        name, config = "e/run", {"model.lr": 0.5}

        def scan_history(self):
            yield {"_step": 0, "_runtime": 1.0, "trainer/global_step": 4, "epoch": 0, "val/acc": 0.5}

    class FakeApi:
        def runs(self, path):
            if path != "team/project":
                raise ValueError(f"Could not find project {path}")
            return [FakeRun()]

    monkeypatch.setattr(wandb, "Api", FakeApi)
    (log,) = read_wandb("team/project")
    assert (log.name, log.config, log.metrics.to_dict("list")) == (
        "e/run", {"model.lr": 0.5}, {"step": [4], "epoch": [0], "val/acc": [0.5]},
    )  # fmt: skip
    with pytest.raises(ValueError, match="W&B project 'nobody/x': Could not find project nobody/x; log in with"):
        read_wandb("nobody/x")


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no run below .*: there is no metrics.csv and no offline W&B run"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match=r"'nothing' is no run folder: it has no config.yaml"):
        main(["report", "nothing"])
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"has no checkpoints/best.ckpt and no last.ckpt"):
        main(["report", str(tmp_path)])
    with pytest.raises(UserError, match="--images 0 must be at least 1"):
        main(["report", str(tmp_path), "--images", "0"])


# figures


def overlaps(figure):
    """Pairs of drawn texts that cover each other, and texts that leave the figure."""
    drawn = {}

    def draw(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer).shrunk(0.9, 0.9)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        canvas.draw()
    boxes = [(text.get_text(), box) for text, box in drawn.items()]
    pairs = [(a, b) for (a, A), (b, B) in itertools.combinations(boxes, 2) if A.overlaps(B)]
    edge = figure.bbox
    return pairs + [text for text, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > edge.x1 or b.y1 > edge.y1]


def figures(run):
    photo = photograph("flower", 224)
    names = ["upper left window", "upper right window", "lower left window", "lower right window"]
    yield "windows", window_figures.windows_figure(photo, 16, 7, 3)
    yield "shift", window_figures.shift_figure(photo, 16, 7, 3)
    yield "mask", window_figures.mask_figure(shifted_window_mask((14, 14), (7, 7), (3, 3)), names)
    yield "index", window_figures.relative_index_figure(3, relative_position_index(3))
    yield "costs", window_figures.cost_figure(attention_costs([56, 112, 168], repeats=1))
    small = SwinTransformer(**SMALL).eval()
    yield (
        "field",
        window_figures.receptive_field_figure(receptive_fields(small, torch.randn(1, 3, 24, 24)), photo[:24, :24]),
    )
    classifier, data = open_run(run)
    result = evaluate(classifier, data)
    (log,) = read_runs(run)
    yield (
        "curves",
        result_figures.curves_figure([log, RunLog("digits_swin_micro/another-run", log.config, log.metrics)]),
    )
    yield "confusion", result_figures.confusion_figure(result)
    yield "calibration", result_figures.calibration_figure(result)
    yield "mistakes", result_figures.mistakes_figure(result, data)
    names = [f"a rather long class name, {k}" for k in range(60)]
    many = Evaluation(torch.rand(200, 60), torch.arange(200) % 60, names, torch.arange(200))
    yield "many classes", result_figures.confusion_figure(many)
    batch, _ = samples(data, "test", range(8))
    images, photos = data.normalize(batch), pixels(batch)
    with torch.no_grad(), record_attention(classifier) as record:
        classifier(images)
    yield "query", model_figures.query_figure(photos[0], list(record.values()), (0.5, 0.5))
    yield "distance", model_figures.distance_figure(record, 4)
    maps = {"rollout": rollout(classifier, images), "Grad-CAM": grad_cam(classifier, images)}
    yield "overlay", model_figures.overlay_figure(photos, maps, ["a long name: 99 %"] * 8)
    for model in (small, SwinTransformerV2(**SMALL)):
        name, block = swin_blocks(model)[-1]
        yield f"bias of {type(model).__name__}", model_figures.bias_figure(block, name)
    yield "features", model_figures.features_figure(photos[0], [m[0] for m in classifier.backbone.feature_maps(images)])


def test_no_text_covers_another_or_leaves_its_figure(run):
    assert overlaps(image_sheet([np.zeros((8, 8, 3))] * 8, ["much too wide a title for so small a picture"] * 8))
    assert {name: found for name, figure in figures(run) if (found := overlaps(figure))} == {}


# the report


def test_the_report_is_one_page_that_asks_the_network_for_nothing(run, tmp_path, capsys):
    main(["report", str(run), "--output", str(tmp_path / "page.html"), "--images", "100"])
    assert capsys.readouterr().out == f"report: {tmp_path / 'page.html'}\n"
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 9
    addresses = re.findall(r"(?:src|href|action|data|poster)\s*=\s*[\"']([^\"']*)", text) + re.findall(r"url\(", text)
    assert all(address.startswith("data:") for address in addresses)
    assert "<script" not in text and "@import" not in text
    for heading in ("Learning", "Confusion", "Mistakes", "Calibration", "What it looks at", "What it has learned"):
        assert f"<h2>{heading}</h2>" in text
    assert f"digits_swin_micro/{run.name}" in text and "top-1 of 100 test images" in text


def test_the_report_of_a_model_without_mistakes(run, monkeypatch):
    from swin_lightning.explore import report

    def perfect(classifier, data, split, limit):
        _, labels = samples(data, split, range(limit))
        return Evaluation(torch.eye(10)[labels], labels, data.class_names, torch.arange(limit))

    monkeypatch.setattr(report, "evaluate", perfect)
    text = report.write_report(run, run / "perfect.html", images=40).read_text()
    assert "<h2>Mistakes</h2>\n<p>None.</p>" in text and text.count("data:image/png;base64,") == 8


def test_the_report_of_another_backbone_leaves_attention_out(run, monkeypatch):
    from swin_lightning.explore import report

    classifier, data = open_run(run)
    classifier.backbone = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 128))
    monkeypatch.setattr(report, "open_run", lambda folder: (classifier, data))
    text = report.write_report(run, run / "other.html", images=40).read_text()
    assert "No attention to show: the backbone is a Sequential, no Swin." in text and "rollout" not in text
