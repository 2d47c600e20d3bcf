"""Find the file of `weights`: a local path, an address, or a model on the Hugging Face Hub.

Files are downloaded once, by one process, into the caches of `torch.hub` and `huggingface_hub`.
"""

import hashlib
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from swin_lightning.errors import UserError, collapse_whitespace

# of a folder or repository, in order of preference
FILE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def local_file(path: str | Path) -> Path:
    """The local file for a path, `https://...` or `hf-hub:owner/name`; downloads it if it is not in the cache.

    Args:
        path: `~` is expanded, and a folder is searched for `FILE_NAMES`. The address of a file may end with
            `#sha256=HEX`; without it, the name may contain the first digits of the SHA-256 as in `name-1a2b3c4d.pth`
            (the convention of torch.hub). `hf-hub:owner/name@revision/file` with optional revision and file.

    Raises:
        UserError: If there is no such file, it cannot be downloaded, or its checksum differs.
    """
    text = str(path)
    if re.match(r"https?://", text):
        return _download(text)
    if text.startswith("hf-hub:"):
        return _download_from_hub(text)
    local = Path(path).expanduser()
    if local.is_dir():
        found = next((local / name for name in FILE_NAMES if (local / name).is_file()), None)
        if found is None:
            raise UserError(f"weights: folder {text!r} has none of {', '.join(FILE_NAMES)}; name a file")
        return found
    return local


def _download(url: str) -> Path:
    address, _, fragment = url.partition("#")
    name = Path(unquote(urlsplit(address).path)).name
    if not name:
        raise UserError(f"weights {url!r}: the address must be that of a file")
    digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
    in_name = re.search(r"-([0-9a-f]{8,})\.", name)
    checksum = digest or (in_name[1] if in_name else None)
    # files of the same name at other addresses are other files
    folder = Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(address.encode()).hexdigest()[:8])
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock

    with FileLock(f"{path}.lock"):
        if path.is_file():
            return path
        try:
            torch.hub.download_url_to_file(address, str(path), hash_prefix=checksum, progress=False)
        except Exception as error:  # of urllib, http and torch.hub
            reason = collapse_whitespace(str(error)) or type(error).__name__
            advice = "the file differs from its checksum" if "hash value" in reason else "check address and network"
            raise UserError(
                f"weights {url!r} cannot be downloaded ({reason}); {advice}, or download the file elsewhere and pass "
                "its path"
            ) from error
    return path


def _download_from_hub(text: str) -> Path:
    match = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/(.+))?", text)
    if match is None:
        raise UserError(f"weights {text!r}: expected hf-hub:owner/name, with optional @revision and /file")
    repository, revision, file = match.groups()
    try:
        from huggingface_hub import HfApi, hf_hub_download

        if file is None:
            files = HfApi().list_repo_files(repository, revision=revision)
            file = next((name for name in FILE_NAMES if name in files), None)
            if file is None:
                raise UserError(f"weights {text!r}: the repository has none of {', '.join(FILE_NAMES)}; name its file")
        path = Path(hf_hub_download(repository, file, revision=revision))
        if path.name.endswith(".index.json"):
            for shard in set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()):
                _verify(Path(hf_hub_download(repository, shard, revision=revision)), text)
    except UserError:
        raise
    except Exception as error:  # of the network libraries; their exception types change between releases
        reason = collapse_whitespace(str(error).split("\n")[0]) or type(error).__name__
        raise UserError(
            f"weights {text!r} cannot be loaded from the Hub ({reason}); check the name (a private model requires `hf "
            f"auth login`); without network access, download it elsewhere with `hf download {repository}` and pass "
            "its path"
        ) from error
    _verify(path, text)
    return path


def _verify(path: Path, text: str) -> None:
    """Compare a file in the Hub's cache with its SHA-256, the name of the file that the link points to."""
    expected = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]{64}", expected):  # a small file, without SHA-256
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise UserError(f"weights {text!r}: checksum mismatch; deleted the corrupt file, please retry")
