"""The model card (`README.md`) of a folder for the Hugging Face Hub."""

from collections.abc import Sequence

from swin_lightning.batch import Preprocessing

REPOSITORY = "OWNER/NAME"

OURS = """```python
from swin_lightning import SwinClassifier

model = SwinClassifier.from_pretrained("{name}")  # normalised images B, 3, H, W -> logits; or a path of this folder
```"""
TIMM = """```python
import timm

model = timm.create_model("hf-hub:{name}", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
```"""
TRANSFORMERS = """```python
# pip install transformers timm torchvision: the image processor is that of timm
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor, model = (c.from_pretrained("{name}") for c in (AutoImageProcessor, AutoModelForImageClassification))
```"""


def model_card(
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    loaded_by: Sequence[str],
    results: str = "",
    name: str = REPOSITORY,
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        class_names: K names.
        preprocessing: From an image to the input of the network.
        loaded_by: Other projects that load the folder, see `hub.write_folder`.
        results: Sections on data, recipe and results.
        name: Repository on the Hub.
    """
    tags = ["swin", *(["timm", "transformers"] if loaded_by else [])]
    front = [
        "pipeline_tag: image-classification",
        "library_name: swin_lightning",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    examples = {"swin_lightning": OURS, "timm": TIMM, "transformers": TRANSFORMERS}
    usage = [f"{title}:\n\n{examples[title].format(name=name)}" for title in ("swin_lightning", *loaded_by)]
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
    sections = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {name.split('/')[-1]}",
        f"Swin Transformer that classifies images into {len(class_names)} classes: {shown}.",
        f"Input: RGB, {preprocessing.protocol()} ({preprocessing.interpolation}), scaled to [0, 1], mean {mean}, "
        f"standard deviation {std}.",
        *([results] if results else []),
        "## How to use",
        *usage,
    ]
    return "\n\n".join(sections) + "\n"
