"""Data sets of the Hugging Face hub, and local folders of the same layout.

Most of the care is `datasets`': it keeps what was downloaded, goes on with a file whose connection broke off, notices
files of a wrong size, locks what it writes against other processes, writes under a temporary name, and shows bars of
what it downloads and prepares. A process that is killed loses the file that it was at, not those before it. What is
added here: one process downloads while others wait, and contents are compared with the hub's checksums.
"""

import hashlib
from pathlib import Path
from typing import Any

from swin_lightning.errors import UserError


def load_hub(path: str) -> Any:
    """Load a data set by hub name, or from a local folder; download and prepare it where that was not done before.

    Raises:
        ValueError: If there is neither a folder nor a network, or if a download is damaged; says what to do.
    """
    import datasets

    local = Path(path).exists()
    if not local and not is_hub_name(path):
        raise UserError(f"data.path {path!r}: there is no such folder; give a folder or a hub name like 'owner/name'")
    try:
        if local:
            return datasets.load_dataset(str(Path(path).resolve()))
        _download(path)
        return datasets.load_dataset(path)
    except DamagedDownload:
        raise
    except Exception as error:  # its network libraries have kinds of their own, others in every release
        raise UserError(f"data.path {path!r} cannot be loaded ({reason(error)}); {cure(path, error)}") from error


class DamagedDownload(ValueError):
    """A file that is not the one that the hub has."""


def is_hub_name(path: str) -> bool:
    owner, _, name = path.partition("/")
    return bool(owner.strip(".~")) and bool(name) and "/" not in name


def reason(error: Exception) -> str:
    """An error's first line, or its kind where it has none."""
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__


def cure(path: str, error: Exception) -> str:
    """What helps against an error of the hub."""
    if "gated" in str(error):
        return f"accept its terms at https://huggingface.co/datasets/{path}, then `hf auth login`"
    return (
        "try again, what is complete is kept; or without a network, download it elsewhere "
        f"(`hf download {path} --repo-type dataset --local-dir FOLDER`) and pass --data.path FOLDER"
    )


def _download(name: str) -> None:
    """Download the files of a data set into the hub's cache and check them, unless they have been prepared already.

    Raises:
        DamagedDownload: If a file has not the SHA-256 that the hub tells; the file is removed.
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
        for url, path in zip(datasets.utils.tqdm(files, desc="Checking checksums"), paths, strict=True):
            _check(url, Path(path), hub.info(url).get("lfs"))


def _check(url: str, path: Path, told: Any) -> None:
    if told is None:  # a small text file
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != told.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DamagedDownload(
            f"{url} was damaged on its way (SHA-256 {found[:8]}..., the hub has {told.sha256[:8]}...); it has been "
            "removed: start again"
        )
