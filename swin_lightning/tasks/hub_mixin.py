"""`save_pretrained`, `push_to_hub` and `from_pretrained` of a classifier, by the mixin of huggingface_hub."""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download

from swin_lightning.batch import Preprocessing
from swin_lightning.hub import CONFIG, read_config, write_folder
from swin_lightning.model_card import model_card
from swin_lightning.models.weights import load_weights

DOWNLOAD_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


class HubMixin(ModelHubMixin):  # type: ignore[misc,unused-ignore]
    """For a task with a Swin `backbone`, a linear `head`, `class_names` and `preprocessing`.

    Nothing is uploaded before `push_to_hub` is called. `from_pretrained` takes a repository of the Hub or a folder; it
    builds a Swin Transformer of the stated sizes, and no other class.
    """

    num_classes: int
    class_names: list[str] | None
    preprocessing: Preprocessing | None

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card without results; `swin-lightning export RUN --format hub` adds those of the run."""
        names = self.class_names or [str(k) for k in range(self.num_classes)]
        assert self.preprocessing is not None  # or the folder would not have been written
        return ModelCard(model_card(names, self.preprocessing, self._loaded_by))

    def _save_pretrained(self, save_directory: Path) -> None:
        names = self.class_names or [str(k) for k in range(self.num_classes)]
        self._loaded_by = write_folder(self, names, self.preprocessing, save_directory)  # type: ignore[arg-type]

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        download = {name: options[name] for name in DOWNLOAD_OPTIONS if name in options}

        def find(name: str) -> Path:
            local = Path(model_id)
            return local / name if local.is_dir() else Path(hf_hub_download(model_id, name, **download))

        backbone, class_names, preprocessing, weights = read_config(find(CONFIG))
        model = cls(backbone, num_classes=len(class_names), class_names=class_names)
        load_weights(model, find(weights))  # type: ignore[arg-type]
        model.preprocessing = preprocessing
        return model.eval()  # type: ignore[attr-defined,no-any-return]
