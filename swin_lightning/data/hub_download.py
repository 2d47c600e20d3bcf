"""Load data sets from the Hugging Face Hub, or from local folders in the same layout.

`datasets` caches downloads, resumes interrupted ones, checks file sizes, locks its cache, writes atomically and shows
progress bars. Added here: one process downloads while the others wait, and checksums are verified.
"""

import hashlib
from pathlib import Path
from typing import Any

from swin_lightning.errors import UserError


class ChecksumError(UserError):
    """A downloaded file differs from the one on the Hub."""


def load_hub_dataset(path: str) -> Any:
    """Load a data set by its Hub name or from a local folder; download and prepare it unless that is done already.

    Returns:
        A `datasets.DatasetDict`.

    Raises:
        UserError: If there is no such folder, the Hub cannot be reached, or a download is damaged.
    """
    import datasets

    local = Path(path).exists()
    if not local and not is_hub_name(path):
        raise UserError(f"data.path: no folder {path!r}; expected a folder or a Hub name such as 'owner/name'")
    try:
        if local:
            return datasets.load_dataset(str(Path(path).resolve()))
        _download(path)
        return datasets.load_dataset(path)
    except ChecksumError:
        raise
    except Exception as error:  # of the network libraries; their exception types change between releases
        raise UserError(f"data.path: cannot load {path!r} ({first_line(error)}); {hint(path, error)}") from error


def is_hub_name(path: str) -> bool:
    """Whether a path can be a Hub name, `owner/name`."""
    owner, _, name = path.partition("/")
    return bool(owner.strip(".~")) and bool(name) and "/" not in name


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__


def hint(path: str, error: Exception) -> str:
    """What to do about an error of the Hub."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError) or "is a gated dataset" in str(error):
        return f"accept the terms at https://huggingface.co/datasets/{path} and run `hf auth login`"
    if isinstance(error, (DatasetNotFoundError, RepositoryNotFoundError)):
        return "check the name; a private data set requires `hf auth login`"
    return (
        "try again (completed files are kept); without network access, download it elsewhere with "
        f"`hf download {path} --repo-type dataset --local-dir FOLDER` and pass --data.path FOLDER"
    )


def _download(name: str) -> None:
    """Download the files of a data set into the Hub cache and verify them, unless it is prepared already.

    Raises:
        ChecksumError: If the SHA-256 of a file differs from the Hub's; the file is deleted.
    """
    import datasets
    from filelock import FileLock
    from huggingface_hub import HfFileSystem

    builder = datasets.load_dataset_builder(name)
    files = [url for urls in (builder.config.data_files or {}).values() for url in urls if url.startswith("hf://")]
    prepared = Path(builder.cache_dir, datasets.config.DATASET_INFO_FILENAME)
    prepared.parent.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{builder.cache_dir}_download.lock"):
        if prepared.exists():
            return
        options = datasets.DownloadConfig(use_etag=False, token=builder.token)
        paths = datasets.DownloadManager(dataset_name=name, download_config=options).download(files)
        hub = HfFileSystem(endpoint=datasets.config.HF_ENDPOINT, token=builder.token)
        for url, path in zip(datasets.utils.tqdm(files, desc="Verifying checksums"), paths, strict=True):
            _verify(url, Path(path), hub.info(url).get("lfs"))


def _verify(url: str, path: Path, lfs: Any) -> None:
    if lfs is None:  # a small text file, without a checksum
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != lfs.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ChecksumError(
            f"data.path: checksum mismatch for {url} (SHA-256 {digest[:8]}..., expected {lfs.sha256[:8]}...); "
            "deleted the corrupt file, please retry"
        )
