# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Masked image modelling
#
# SimMIM learns without labels: it sees an image with masked blocks and predicts the pixels behind them. This notebook
# watches the reconstructions during training, and then measures what the features know about the classes that the model
# has never seen.
#
# A two-stage Swin on the 1,797 digits of scikit-learn, for 12 epochs. The experiment `digits_simmim_swin_micro` trains
# for 40.

# %%
# %matplotlib inline
import torch
from lightning import Callback, Trainer, seed_everything

from swin_lightning import SimMIM
from swin_lightning.data import Digits
from swin_lightning.explore.feature_figures import project, projection_figure, reconstruct, reconstruction_figure
from swin_lightning.explore.features import extract_features
from swin_lightning.explore.probes import knn_accuracy, linear_accuracy
from swin_lightning.models import swin_micro_patch4_window4_32

torch.set_num_threads(1)
EPOCHS = 12

# %% [markdown]
# ## Images and masks
#
# 10 of the 16 blocks of 8 x 8 pixels are masked. The mask of an image is a function of seed, epoch and index.

# %%
seed_everything(0)
data = Digits(batch_size=32, num_workers=0, crop="pad", hflip=0.0, rotate=10.0)
data.setup("fit")
model = SimMIM(swin_micro_patch4_window4_32(), mask_patch_size=8, lr=2e-3, warmup_epochs=2)

batch = next(iter(data.val_dataloader()))
images, indices = data.normalize(batch["image"])[:6], batch["index"][:6]
pixels, untrained = reconstruct(model, images, indices)
reconstructions = {"untrained": untrained}
reconstruction_figure(data, images, pixels, reconstructions)

# %% [markdown]
# ## Features before training


# %%
def probe(model):
    """Accuracy of nearest neighbours and of a linear probe on the test digits."""
    train, test = (extract_features(model, data, split) for split in ("train", "test"))
    return {"neighbours": knn_accuracy(train, test), "linear": linear_accuracy(train, test)[0]}


before = probe(model)
print(before)


# %% [markdown]
# ## Train
#
# A callback keeps the reconstructions of the same images after some epochs.


# %%
class Watch(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        epoch = trainer.current_epoch + 1
        print(f"epoch {epoch}: val/loss {trainer.callback_metrics['val/loss']:.3f}")
        if epoch in (1, 3, EPOCHS):
            _, reconstructions[f"epoch {epoch}"] = reconstruct(pl_module, images, indices)


trainer = Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    gradient_clip_val=5.0,
    callbacks=[Watch()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(model, data)

# %% [markdown]
# At first the model predicts the dark background, which is the median, then where strokes continue from what it sees.
# Where everything around is masked it cannot know: the picture is blurred.

# %%
reconstruction_figure(data, images, pixels, reconstructions)

# %% [markdown]
# ## Features after training
#
# No label was used so far. Pooled features of a random network separate the digits already, as they are tiny images, so
# that the probes show little of what was learned. SimMIM is made for fine-tuning: `swin-lightning fit -c
# digits_swin_micro --model.weights CKPT`. `swin-lightning features` and `swin-lightning probe` measure a run.

# %%
after = probe(model)
for name, accuracy in after.items():
    print(f"{name}: {100 * before[name]:.1f} % before, {100 * accuracy:.1f} % after training")

# %%
test = extract_features(model, data, "test")
projection_figure(project(test, "tsne"), test, "t-SNE of the features of 360 test digits")

# %%
projection_figure(project(test, "pca"), test, "the two principal components")
