"""Data sets from the Hub by name, with a local server in its place: progress, faults, concurrent processes."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from datasets.exceptions import DatasetNotFoundError

from swin_lightning.data import ImageFolder
from swin_lightning.data.hub_download import hint, load_hub_dataset
from swin_lightning.errors import UserError
from tests.support.file_server import Server

NAME = "owner/name"
SHARD = "train-00001-of-00004.parquet"
PATH = f"/datasets/{NAME}/{SHARD}"


@pytest.fixture
def hub(parquet, tmp_path, monkeypatch):
    """The server; it offers 32 training and 7 validation images as `owner/name`."""
    with Server() as server:
        server.add(parquet, f"/datasets/{NAME}")
        server.replace_hub(monkeypatch, tmp_path / "cache")
        yield server


def values(split):
    reader = ImageFolder(NAME).load(split)
    return [int(np.asarray(reader[i][0])[0, 0, 0]) for i in range(len(reader))]


@pytest.mark.slow
def test_data_set_is_downloaded_once_and_then_loaded_offline(hub, capfd):
    data = ImageFolder(NAME)
    data.prepare_data()
    bars = capfd.readouterr().err
    for text in ("Verifying checksums: 100%", "Generating train split: 32 examples", "7 examples"):
        assert text in bars
    assert data.class_names == ["even", "odd"]
    assert (values("train"), values("val")) == ([*range(32)], [*range(100, 107)])
    assert data.load("train").name(3) == "owner/name[3]"
    assert hub.downloads(".parquet") == [None] * 5
    hub.stop()
    assert values("train") == [*range(32)]
    assert capfd.readouterr().err.count("%") == 0  # no progress bars if there is nothing to do


def test_interrupted_download_is_resumed(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # bytes
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries
    hub.faults[PATH] = [("disconnect", 1000), ("disconnect", 500)]
    load_hub_dataset(NAME)
    assert hub.downloads(SHARD) == [None, "bytes=1000-", "bytes=1500-"]
    assert values("train") == [*range(32)]


def test_corrupt_download_is_deleted_and_downloaded_again(hub):
    content = hub.files[PATH]
    hub.advertised[PATH] = content
    hub.files[PATH] = content[:300] + bytes([content[300] ^ 1]) + content[301:]
    with pytest.raises(UserError, match=rf"checksum mismatch for hf://datasets/owner/name@.*{SHARD} .*please retry"):
        load_hub_dataset(NAME)
    hub.files[PATH] = content
    assert values("train") == [*range(32)]
    assert [len(hub.downloads(f"train-0000{i}-of-00004.parquet")) for i in range(4)] == [1, 2, 1, 1]


def test_unknown_name_is_an_error_with_a_hint(hub):
    with pytest.raises(UserError, match=r"data\.path: cannot load 'owner/other' \(.*\); check the name"):
        load_hub_dataset("owner/other")


def test_unreachable_hub_is_an_error_with_a_hint(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries
    hub.stop()
    with pytest.raises(
        UserError, match=r"data\.path: cannot load 'owner/name' \(.*\); try again .*--data\.path FOLDER"
    ):
        load_hub_dataset(NAME)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            "accept the terms at https://.*/a/b and",
        ),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub."), "check the name"),
        (OSError("Connection reset"), "try again"),
    ],
)
def test_hints(error, expected):
    assert re.match(expected, hint("a/b", error))


@pytest.mark.slow
def test_one_of_two_processes_downloads(hub, tmp_path):
    """As two ranks on a new machine: every file is downloaded once, and both load the data set."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    program = (
        "from swin_lightning.data.hub_download import load_hub_dataset;"
        f"print(load_hub_dataset({NAME!r})['train'].num_rows)"
    )
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["32", "32"]
    assert hub.downloads(".parquet") == [None] * 5
