"""Labels of the ImageNet-1K validation images in the files of the challenge, whose images lie in no class folders."""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from swin_lightning.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
MAX_BYTES = 64 * 2**20  # of a file in the development kit; the largest has some hundred kilobytes
IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.", re.ASCII)


def is_official_val(folder: Path) -> bool:
    """Whether validation images of the challenge lie in a folder itself, not in class folders."""
    return folder.is_dir() and any(folder.glob("ILSVRC2012_val_*"))


def validation_labels(root: Path, names: Sequence[str], wordnet_ids: Sequence[str]) -> list[int]:
    """Class indices of validation images, which have numbers in their names.

    The ground truth has a line per image with a number from 1 to 1000, which `meta.mat` assigns to a WordNet id. Both
    are read from `ILSVRC2012_devkit_t12.tar.gz`, the folder of this name or its `data`, or from `root`.

    Args:
        root: Folder of the development kit.
        names: Names or paths of the images, such as `ILSVRC2012_val_00000001.JPEG`.
        wordnet_ids: WordNet ids of the classes in the order of the indices.

    Raises:
        UserError: If the development kit is missing or damaged, or does not know an image.

    Source: the readme of the development kit, https://image-net.org/challenges/LSVRC/2012.
    """
    truth, meta = _read_devkit(root)
    try:
        ids, positions = _wordnet_ids(meta), {wordnet_id: i for i, wordnet_id in enumerate(wordnet_ids)}
        labels = [positions[ids[int(line)]] for line in truth.split()]
    except (ValueError, KeyError, TypeError, OSError, IndexError) as error:
        raise UserError(
            f"data.path: cannot read {GROUND_TRUTH} and {META} of {DEVKIT} in {str(root)!r}: {error}"
        ) from None
    numbers = [int(match[1]) if (match := IMAGE_NAME.match(PurePath(name).name)) else 0 for name in names]
    for name, number in zip(names, numbers, strict=True):
        if not 0 < number <= len(labels):
            raise UserError(
                f"data.path: {name!r} is none of the {len(labels)} validation images of {GROUND_TRUTH}; expected "
                "ILSVRC2012_val_<number>.JPEG"
            )
    return [labels[number - 1] for number in numbers]


def _read_devkit(root: Path) -> tuple[bytes, bytes]:
    """Content of the ground truth and of `meta.mat`."""
    for folder in (root, root / DEVKIT / "data", root / DEVKIT, root / "data"):
        if (folder / GROUND_TRUTH).is_file() and (folder / META).is_file():
            return (folder / GROUND_TRUTH).read_bytes(), (folder / META).read_bytes()
    archive = root / f"{DEVKIT}.tar.gz"
    if not archive.is_file():
        raise UserError(
            f"data.path: the validation images in {str(root)!r} are in no class folders; put {DEVKIT}.tar.gz of "
            f"image-net.org, or {GROUND_TRUTH} and {META} from it, beside them"
        )
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = PurePath(member.name).name
                if name in (GROUND_TRUTH, META) and member.isfile() and member.size <= MAX_BYTES:
                    content = tar.extractfile(member)
                    found[name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"data.path: cannot read {str(archive)!r}: {error}; download it again") from None
    if len(found) < 2:
        raise UserError(f"data.path: {str(archive)!r} does not contain {GROUND_TRUTH} and {META}; download it again")
    return found[GROUND_TRUTH], found[META]


def _wordnet_ids(meta: bytes) -> dict[int, str]:
    """WordNet id by the number that the challenge gave it: 1 to 1000 are the classes, larger ones their ancestors."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
