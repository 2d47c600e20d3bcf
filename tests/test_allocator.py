"""Allocator settings: when they are applied, and how the process is re-executed with them."""

import os
import sys

import pytest

from swin_lightning.allocator import ENV_VAR, GLIBC, JEMALLOC, describe, reexec_with_allocator, settings


@pytest.fixture(autouse=True)
def existing_files(monkeypatch):
    """Linux with glibc, without jemalloc and GPU; tests add paths of files that exist."""
    paths = set()
    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2}, raising=False)
    monkeypatch.setattr(os.path, "isfile", lambda path: path in paths)
    monkeypatch.setattr(os.path, "exists", lambda path: path in paths)
    return paths


def test_glibc_keeps_freed_memory():
    assert settings({"HOME": "/"}) == {**GLIBC, ENV_VAR: "glibc"}
    assert int(GLIBC["MALLOC_TRIM_THRESHOLD_"]) == 8 * 2**30


def test_jemalloc_is_preloaded_if_installed(existing_files):
    library = f"{sys.prefix}/lib/libjemalloc.so.2"
    existing_files.add(library)
    assert settings({}) == {**JEMALLOC, "LD_PRELOAD": library, ENV_VAR: library}


@pytest.mark.parametrize("name", [*GLIBC, *JEMALLOC, "LD_PRELOAD", ENV_VAR])
def test_existing_settings_are_not_changed(name):
    assert settings({name: "x"}) == {}


def test_no_settings_on_gpu_machines_and_without_glibc(existing_files, monkeypatch):
    existing_files.add("/dev/nvidiactl")
    assert settings({}) == {}
    assert settings({"CUDA_VISIBLE_DEVICES": ""})[ENV_VAR] == "glibc"  # the GPU is hidden
    existing_files.clear()
    monkeypatch.setattr(os, "confstr_names", {})
    assert settings({}) == {}


@pytest.mark.parametrize(
    ("process", "reexecuted"),
    [
        (["python", "/bin/swin-lightning", "fit", "-c", "x"], True),
        (["python", "-m", "swin_lightning", "fit", "-c", "x"], True),
        (["python", "-u", "-m", "swin_lightning", "fit", "-c", "x"], True),  # torchrun
        (["python", "-m", "pytest", "fit", "-c", "x"], False),  # called from another program
    ],
)
def test_reexec_of_command_line_processes_only(monkeypatch, process, reexecuted):
    calls = []
    monkeypatch.setattr(sys, "orig_argv", process)
    monkeypatch.setattr(sys, "argv", ["program", "fit", "-c", "x"])
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    monkeypatch.setattr(os, "execv", lambda *args: calls.append(args))
    reexec_with_allocator()
    assert calls == [(sys.executable, [sys.executable, *process[1:]])] * reexecuted
    assert (ENV_VAR in os.environ) == reexecuted
    reexec_with_allocator()  # the new process already has the settings
    assert len(calls) == reexecuted


def test_log_message(monkeypatch):
    monkeypatch.setenv(ENV_VAR, "glibc")
    message = "allocator: glibc tuned to keep freed memory; set SWIN_LIGHTNING_ALLOCATOR=off to disable"
    assert describe() == message
    monkeypatch.setenv(ENV_VAR, "off")
    assert describe() is None
    monkeypatch.delenv(ENV_VAR)
    assert describe() is None
