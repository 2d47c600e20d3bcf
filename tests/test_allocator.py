"""The door starts its process once more with settings for memory, where that helps and nobody chose otherwise."""

import os
import sys

import pytest

from swin_lightning.allocator import GLIBC, JEMALLOC, SWITCH, note, restart, settings


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Linux with glibc, without jemalloc and GPU; add paths to what exists."""
    there = set()
    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2}, raising=False)
    monkeypatch.setattr(os.path, "isfile", lambda path: path in there)
    monkeypatch.setattr(os.path, "exists", lambda path: path in there)
    return there


def test_glibc_is_told_to_keep_memory():
    assert settings({"HOME": "/"}) == {**GLIBC, SWITCH: "glibc"}
    assert int(GLIBC["MALLOC_TRIM_THRESHOLD_"]) == 8 * 2**30


def test_jemalloc_is_loaded_where_it_is_installed(machine):
    machine.add(f"{sys.prefix}/lib/libjemalloc.so.2")
    library = f"{sys.prefix}/lib/libjemalloc.so.2"
    assert settings({}) == {**JEMALLOC, "LD_PRELOAD": library, SWITCH: library}


@pytest.mark.parametrize("name", [*GLIBC, *JEMALLOC, "LD_PRELOAD", SWITCH])
def test_what_the_user_or_the_first_process_has_set_stays(name):
    assert settings({name: "x"}) == {}


def test_other_systems_and_machines_with_a_gpu_are_left_alone(machine, monkeypatch):
    machine.add("/dev/nvidiactl")
    assert settings({}) == {}
    assert settings({"CUDA_VISIBLE_DEVICES": ""})[SWITCH] == "glibc"  # the GPU is hidden
    machine.clear()
    monkeypatch.setattr(os, "confstr_names", {})
    assert settings({}) == {}


@pytest.mark.parametrize(
    ("process", "again"),
    [
        (["python", "/bin/swin-lightning", "fit", "-c", "x"], True),
        (["python", "-m", "swin_lightning", "fit", "-c", "x"], True),
        (["python", "-u", "-m", "swin_lightning", "fit", "-c", "x"], True),  # as torchrun does
        (["python", "-m", "pytest", "fit", "-c", "x"], False),  # called from another program
    ],
)
def test_only_the_command_lines_own_process_starts_again(monkeypatch, process, again):
    started = []
    monkeypatch.setattr(sys, "orig_argv", process)
    monkeypatch.setattr(sys, "argv", ["program", "fit", "-c", "x"])
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    monkeypatch.setattr(os, "execv", lambda *args: started.append(args))
    restart()
    assert started == [(sys.executable, [sys.executable, *process[1:]])] * again
    assert (SWITCH in os.environ) == again
    restart()  # the new process finds its settings
    assert len(started) == again


def test_the_log_says_what_was_set_and_how_to_turn_it_off(monkeypatch):
    monkeypatch.setenv(SWITCH, "glibc")
    assert note() == "memory: glibc keeps what is freed; SWIN_LIGHTNING_ALLOCATOR=off leaves it to the system"
    monkeypatch.setenv(SWITCH, "off")
    assert note() is None
    monkeypatch.delenv(SWITCH)
    assert note() is None
