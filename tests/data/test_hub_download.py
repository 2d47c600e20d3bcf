"""Data sets of the hub by name, from a stand-in on this machine: progress, faults, other processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from swin_lightning.data import ImageFolder
from swin_lightning.data.hub_download import load_hub
from tests.data.test_readers import OPTIONS, parquet  # noqa: F401
from tests.support.file_server import Server

NAME = "owner/name"
FILE = "/datasets/owner/name/train-00001-of-00004.parquet"


@pytest.fixture
def hub(parquet, tmp_path, monkeypatch):  # noqa: F811
    """The server; it offers 32 training and 7 validation images as `owner/name`."""
    with Server() as server:
        server.add(parquet, f"/datasets/{NAME}")
        server.become_the_hub(monkeypatch, tmp_path / "cache")
        yield server


def values(dataset):
    images = ImageFolder(NAME, num_workers=0, **OPTIONS).load(dataset)
    return [int(np.asarray(images[i][0])[0, 0, 0]) for i in range(len(images))]


def test_a_set_is_loaded_by_name_once_and_then_without_a_network(hub, capfd):
    data = ImageFolder(NAME, num_workers=0, **OPTIONS)
    data.prepare_data()
    bars = capfd.readouterr().err
    for words in ("Checking checksums: 100%", "Generating train split: 32 examples", "7 examples"):
        assert words in bars
    assert data.class_names == ["even", "odd"]
    assert (values("train"), values("val")) == ([*range(32)], [*range(100, 107)])
    assert data.load("train").name(3) == "owner/name[3]"
    assert hub.downloads(".parquet") == [None] * 5
    hub.http.shutdown()
    hub.http.server_close()
    assert values("train") == [*range(32)]
    assert capfd.readouterr().err.count("%") == 0  # no bars where nothing is done


def test_a_broken_connection_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # bytes; 10 MB are kept at a time
    hub.faults[FILE] = [1000, 500]
    load_hub(NAME)
    asked = hub.downloads(FILE.rpartition("/")[2])
    assert asked == [None, "bytes=1000-", "bytes=1500-"]
    assert values("train") == [*range(32)]


def test_a_damaged_file_is_noticed_and_fetched_again(hub):
    whole = hub.files[FILE]
    hub.told[FILE] = whole
    hub.files[FILE] = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    with pytest.raises(
        ValueError, match=r"hf://datasets/owner/name@.*train-00001.* was damaged on its way .*start again"
    ):
        load_hub(NAME)
    hub.files[FILE] = whole
    assert values("train") == [*range(32)]
    assert [len(hub.downloads(f"train-0000{i}-of-00004.parquet")) for i in range(4)] == [1, 2, 1, 1]


@pytest.mark.slow
def test_of_two_processes_one_downloads(hub, tmp_path):
    """As two ranks on a fresh machine would: every file is fetched once, and both see the set."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    program = f"from swin_lightning.data.hub_download import load_hub; print(load_hub({NAME!r})['train'].num_rows)"
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["32", "32"]
    assert hub.downloads(".parquet") == [None] * 5
