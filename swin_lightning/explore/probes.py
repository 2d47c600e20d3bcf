"""`swin-lightning probe FEATURES`: how well frozen features separate the classes, by neighbours and a linear model."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from swin_lightning.errors import CommandParser, UserError
from swin_lightning.explore.features import Features, read_features

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of scikit-learn: small values regularise more


def probe(args: list[str]) -> None:
    """Measure frozen features: test accuracy of nearest neighbours and of logistic regression (linear probe).

    Both are trained on the split `train` of a file of `swin-lightning features`. The strength of the regularisation is
    chosen on the split `val`, if the file has it.
    """
    parser = CommandParser("swin-lightning probe", description=probe.__doc__)
    parser.add_argument("features", metavar="FEATURES", help="Parquet file of `swin-lightning features`")
    parser.add_argument("--split", default="test", help="split to evaluate (default: test)")
    parser.add_argument("--neighbours", type=int, default=20, metavar="K", help="default: 20")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the neighbours' weights (default: 0.07)")
    options = parser.parse_args(args)
    for name in ("neighbours", "temperature"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name} {getattr(options, name)} must be above 0")
    train, test = read_features(options.features, "train"), read_features(options.features, options.split)
    nearest = knn_accuracy(train, test, options.neighbours, options.temperature)
    linear, penalty = linear_accuracy(train, test, _validation(options.features))
    print(f"{options.split}/knn_acc {nearest:.4f}  {options.split}/linear_acc {linear:.4f}")
    print(f"{options.neighbours} neighbours; logistic regression, C {penalty:g}; {len(train.labels)} training images")


def knn_accuracy(train: Features, test: Features, neighbours: int = 20, temperature: float = 0.07) -> float:
    """Top-1 accuracy of the vote of the nearest training images, weighted by `exp(cosine similarity / temperature)`.

    Args:
        train: Features with labels.
        test: Features with labels.
        neighbours: Number of neighbours, at most the number of training images.
        temperature: Temperature of the weights.

    Source: Wu et al., 2018, arXiv:1805.01978.
    """
    (x, labels), (y, wanted) = _labelled(train), _labelled(test)
    bank = F.normalize(torch.from_numpy(x), dim=1)
    targets = torch.from_numpy(labels)
    one_hot = F.one_hot(targets, int(targets.max()) + 1).float()
    correct = 0
    for start in range(0, len(wanted), 512):
        queries, known = torch.from_numpy(y[start : start + 512]), torch.from_numpy(wanted[start : start + 512])
        nearest = (F.normalize(queries, dim=1) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        weights = ((nearest.values - 1) / temperature).exp()  # less than 1, so that none overflows
        votes = (one_hot[nearest.indices] * weights[..., None]).sum(dim=1)
        correct += int((votes.argmax(dim=1) == known).sum())
    return correct / len(wanted)


def linear_accuracy(
    train: Features, test: Features, val: Features | None = None, penalties: Sequence[float] = PENALTIES
) -> tuple[float, float]:
    """Top-1 accuracy of logistic regression on standardised features (linear probe), and its C.

    Args:
        train: Features with labels.
        test: Features with labels.
        val: Features by which C is chosen; without them it is 1.
        penalties: Values of C to choose from.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(penalty: float) -> object:
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(*_labelled(train))

    models = {penalty: fit(penalty) for penalty in ([1.0] if val is None else penalties)}
    best = max(models, key=lambda penalty: models[penalty].score(*_labelled(val)) if val is not None else 0.0)  # type: ignore[attr-defined]
    return float(models[best].score(*_labelled(test))), best  # type: ignore[attr-defined]


# helpers


def _labelled(features: Features) -> tuple[np.ndarray, np.ndarray]:
    known = features.labels >= 0
    if not known.any():
        raise UserError("the features have no labels; a probe needs them")
    return features.values[known], features.labels[known]


def _validation(path: str) -> Features | None:
    try:
        return read_features(path, "val")
    except UserError:  # the file has no such split
        return None
