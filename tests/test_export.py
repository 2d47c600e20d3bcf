"""A program of `swin-lightning export --format pt2` runs where only torch is."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from swin_lightning.export import export_pt2
from swin_lightning.models import SwinTransformer, SwinTransformerV2

SIZES = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "num_classes": 0}
ALONE = """
import sys, torch
for version in (1, 2):
    model = torch.export.load(f"{version}.pt2").module()
    for images, logits in torch.load(f"{version}.pt", weights_only=True):
        torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=0)
assert "swin_lightning" not in sys.modules
"""


class Classifier(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(16, 3)


def test_a_process_with_torch_alone_gives_the_same_logits():
    for version, build in ((1, SwinTransformer), (2, SwinTransformerV2)):
        model = Classifier(build(drop_path_rate=0.5, **SIZES))
        for parameter in model.parameters():  # V2 starts with branches of zero
            nn.init.normal_(parameter, std=0.1)
        export_pt2(model, f"{version}.pt2")
        assert model.training and model.backbone.training
        model.eval()
        with torch.no_grad():
            pairs = [(x, model.head(model.backbone(x))) for x in (torch.randn(n, 3, 32, 32) for n in (1, 3))]
        torch.save(pairs, f"{version}.pt")
    subprocess.run([sys.executable, "-c", ALONE], check=True)


@pytest.mark.parametrize(
    ("path", "size", "said"), [("a.pth", 32, "'a.pth' must end with .pt2"), ("a.pt2", 0, "size 0")]
)
def test_mistakes_are_told(path, size, said):
    with pytest.raises(ValueError, match=said):
        export_pt2(Classifier(SwinTransformer(**SIZES)), path, size)
