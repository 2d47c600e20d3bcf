"""`swin-lightning export RUN --format hub`: a folder for the Hub with a model card of the run, and its upload."""

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.errors import UserError, summarize
from swin_lightning.explore.evaluation import evaluate, load_run
from swin_lightning.explore.result_figures import confusion_figure, curves_figure
from swin_lightning.explore.runs import read_runs
from swin_lightning.inference import find_checkpoint_file
from swin_lightning.model_card import REPOSITORY, model_card
from swin_lightning.runs import RunFolder
from swin_lightning.tasks.classification import load_classifier

MAX_CLASSES = 100  # no confusion matrix is drawn for more
CURVES = ("train/loss", "val/loss", "val/acc")


def export_hub(checkpoint: str, output: Path, push: str | None = None, allow: Allowed = ()) -> None:
    """Write the folder, load it again and compare it, and upload it if a repository is named.

    Args:
        checkpoint: A run folder, or a `.ckpt` file. Results are those of its run, without a run there are none.
        output: A new or empty folder.
        push: Repository on the Hub, `owner/name`; it is created if it does not exist.
        allow: Classes that the checkpoint may name besides those of `swin_lightning`.

    Raises:
        UserError: If the folder is not empty, the model cannot be saved for the Hub, or the upload fails.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output {str(output)!r} exists and is no empty folder; name a new one")
    path = find_checkpoint_file(checkpoint)
    classifier = load_classifier(path, allow)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder = Path(temporary, output.name)
        classifier.save_pretrained(folder)
        _compare(classifier, folder)
        run = RunFolder.of_checkpoint(path)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert classifier.preprocessing is not None
        card = model_card(
            config["swin_lightning"]["class_names"],
            classifier.preprocessing,
            ["timm", "transformers"] if "architecture" in config else [],
            "" if run is None else run_results(run, folder, allow),
            push or REPOSITORY,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        if output.exists():
            output.rmdir()
        folder.rename(output)
    print(f"wrote {output}: {', '.join(sorted(file.name for file in output.iterdir()))}")
    if push is not None:
        print(f"uploaded: {upload(output, push)}")


def run_results(run: RunFolder, folder: Path, allow: Allowed = ()) -> str:
    """Sections on data, recipe and results of a run; their figures are saved in the folder."""
    (log,) = read_runs(run.path)
    model, data = load_run(run.path, allow)
    config = run.read_config()
    sections = []
    rows = [("validation", log.best("val/acc")), ("test", log.last("test/acc"))]
    known = [(split, value) for split, value in rows if value is not None]
    if known:
        table = "\n".join(f"| {split} | {100 * value:.2f} % |" for split, value in known)
        protocol = f"Protocol: {data.eval_protocol()}, one crop, top-1. Validation: best epoch."
        sections.append(f"## Results\n\n| split | top-1 |\n|---|---|\n{table}\n\n{protocol}")
    shown = [metric for metric in CURVES if metric in log.metrics]
    if shown:
        curves_figure([log], shown).savefig(folder / "curves.png", dpi=120)
        sections.append("![Training curves](curves.png)")
    split = "test" if log.last("test/acc") is not None else "val"
    try:
        evaluation = evaluate(model, data, split)
    except UserError as error:
        sections.append(f"No confusion matrix: {error}")
    else:
        sections.append(
            f"{split} accuracy of {len(evaluation.labels)} images, measured again: {evaluation.accuracy:.2%}"
        )
        if len(evaluation.class_names) <= MAX_CLASSES:
            confusion_figure(evaluation).savefig(folder / "confusion.png", dpi=120)
            sections.append("![Confusion matrix (rows: true, columns: predicted)](confusion.png)")
    recipe = {name: _without_folders(config[name]) for name in ("seed_everything", "model", "data") if name in config}
    name = type(data).__name__
    sections.append(f"## Data and recipe\n\nTrained on `{name}`, run `{run.name}`.\n\n```yaml\n{_yaml(recipe)}```")
    return "\n\n".join(sections)


def upload(folder: Path, repository: str) -> str:
    """Upload a folder as one commit; the repository is created if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        UserError: If the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        name = api.create_repo(repository, exist_ok=True).repo_id
        return str(
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model of swin_lightning")
        )
    except Exception as error:  # of huggingface_hub, httpx or the network
        raise UserError(
            f"--push {repository}: upload failed ({summarize(error)[:300]}); run `hf auth login`?"
        ) from error


# helpers


def _compare(classifier: Any, folder: Path) -> None:
    import torch

    size = classifier.preprocessing.image_size
    channels = classifier.backbone.patch_embed.proj.in_channels
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        difference = (type(classifier).from_pretrained(folder)(images) - classifier(images)).abs().max()
    if not difference <= 1e-4:
        raise UserError(f"nothing written: the logits of the folder differ by {difference:.2g} from the checkpoint's")


def _without_folders(value: Any) -> Any:
    """A configuration without the folders of this machine: only the last part of absolute paths is kept."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
