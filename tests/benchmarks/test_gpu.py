"""The GPU benchmark: rehearsed on a CPU, and its rules."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import work
from benchmarks.gpu.plan import BASE, OPERATOR, Case, Step, steps
from benchmarks.gpu.report import decisions, markdown
from swin_lightning.errors import UserError
from tests.support.cli import ROOT, environment


def case_result(images_per_s):
    row = {"images_per_s": images_per_s, "ms": 1.0, "memory_mib": 2.0, "first_s": 3.0}
    return {"status": "ok", "seconds": 1.0, "result": row}


def ok(result):
    return {"status": "ok", "seconds": 1.0, "result": result}


@pytest.fixture
def results():
    half = Case("own", compile="default", operator=True, half_residual=True)
    return {
        "correctness": ok({"versions": {"GPU": "NVIDIA H100"}, "errors": {"V1, operator": 4e-3}}),
        f"case {BASE.name}": case_result(100.0),
        f"case {OPERATOR.name}": case_result(106.0),
        f"case {half.name}": case_result(111.0),
        "losses": ok({"float32": 2.0, "float32, other order": 2.1, "bf16": 2.15, "half residual": 2.05}),
        "trainer": ok({"ratio": 1.01, "syncs": 3}),
    }


def decision(results, name):
    (line,) = [line for line in decisions(results) if line.startswith(name)]
    return line


def test_decisions_follow_the_rules(results):
    assert decision(results, "correctness") == "correctness: all errors below 0.01"
    assert decision(results, "operator") == "operator, compiled: 1.060 (rule: at least 1.05): keep the operator"
    assert decision(results, "half_residual").endswith(
        "1.047 (rule: at least 1.03): make half_residual the default on GPUs"
    )
    assert decision(results, "losses").endswith("limit of the difference 0.2000: all within noise")
    assert decision(results, "Trainer") == "Trainer: 1.010 of a bare loop (rule: at most 1.02), 3 syncs: fine"
    assert decision(results, "aim: compiled timm") == "aim: compiled timm, without drop path: not measured"


def test_decisions_against_a_change(results):
    results["correctness"]["result"]["errors"]["V1, operator"] = float("nan")
    results[f"case {OPERATOR.name}"] = case_result(104.0)
    results["losses"]["result"] |= {"half residual": 2.3, "bf16": float("nan")}
    results["trainer"]["result"]["ratio"] = 1.05
    assert decision(results, "correctness") == "correctness: DO NOT USE V1, operator (error nan)"
    assert decision(results, "operator").endswith("turn the operator off by default")
    assert decision(results, "half_residual").endswith("faster, but the loss differs: leave half_residual off")
    assert decision(results, "losses").endswith("NOT within noise, do not keep: bf16 nan, half residual 2.3000")
    assert decision(results, "Trainer").endswith("find the synchronisations in trainer.log")


def test_without_a_gpu_nothing_changes(results):
    results["correctness"]["result"]["versions"]["GPU"] = "none: a rehearsal on the CPU"
    assert decisions(results)[0] == "no GPU: this was a rehearsal, change nothing"
    assert decisions({})[0] == "no GPU: this was a rehearsal, change nothing"


def test_report_has_a_row_for_each_case(results):
    results[f"case {Case('timm').name}"] = {"status": "stopped after 60 s", "seconds": 60.0, "result": None}
    attention = {"stage": 1, "shift": 3, "way": "explicit"}
    measured = attention | {"error": 1e-3, "forward": 1.0, "training": 2.0}
    results["attention"] = ok([measured, attention | {"way": "SDPA cuDNN", "failed": "RuntimeError: no"}])
    text = markdown(results)
    assert f"| {OPERATOR.name} | 106 | 1.00 | 2 | 3.0 |" in text
    assert "| timm | stopped after 60 s | | | |" in text
    assert "| 1, 3 | explicit | 1.000 | 2.000 | 1.0e-03 |" in text
    assert "| 1, 3 | SDPA cuDNN | RuntimeError: no |" in text


@pytest.mark.parametrize(
    ("code", "minutes", "status", "result"),
    [
        ("write('[1]')", 1, "ok", [1]),
        ("write('[1]'); sys.exit(3)", 1, "failed with exit code 3; see a_step.log", [1]),
        ("write('[1]'); os.kill(os.getpid(), 9)", 1, "failed with exit code -9; see a_step.log", [1]),
        ("write('[1]'); time.sleep(60)", 0.15, "stopped after 9 s", [1]),
        ("pass", 1, "no result", None),
    ],
    ids=["ok", "exit", "killed", "hangs", "writes nothing"],
)
def test_a_step_that_fails_costs_that_step_alone(code, minutes, status, result, tmp_path, monkeypatch):
    wait = subprocess.Popen.wait
    shorter = lambda self, timeout=None: wait(self, timeout and min(timeout, 2.0))  # noqa: E731
    monkeypatch.setattr(subprocess.Popen, "wait", shorter)
    path = tmp_path / "a_step.json"
    code = f"import os, sys, time\nwrite = lambda text: open({str(path)!r}, 'w').write(text)\n{code}"
    found = command.run_step(Step("a step", minutes, "case"), [sys.executable, "-Sc", code], tmp_path, 100.0)
    assert (found["status"], found["result"]) == (status, result)


def test_steps_without_time_are_left_out(tmp_path):
    found = command.run_step(Step("a step", 1, "case"), ["false"], tmp_path, 1.0)
    assert found == {"status": "no time left", "seconds": 0.0, "result": None}


@pytest.mark.parametrize("kind", ["correctness", "case"])
def test_work_of_a_step(kind, tmp_path):
    options = command.parse(["--device", "cpu", "--rehearse", "--output", str(tmp_path)])
    argument = asdict(Case("own", dense=False, half_residual=True)) if kind == "case" else None
    work.run(Step("a step", 1, kind, argument), options)
    found = json.loads((tmp_path / "a_step.json").read_text())
    if kind == "case":
        assert found["images_per_s"] == pytest.approx(2e3 / found["ms"])
    else:
        assert len(found["errors"]) == 8 and all(0 < error < 0.05 for error in found["errors"].values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--minutes", "0"], "--minutes 0 must be above 0"),
        (["--batch-size", "1"], "--batch-size 1 must be at least 2"),
        (["--peers", "nowhere"], "--peers nowhere: no such folder"),
    ],
)
def test_invalid_options(args, message):
    with pytest.raises(UserError, match=message):
        command.parse(args)


def test_names_of_steps_are_unique():
    names = [step.file for step in steps()]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rehearsal_without_packages_of_the_command_line(tmp_path):
    """All steps run on a machine that lacks what only the command line and the data modules need."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("jsonargparse", "albumentations", "wandb", "datasets", "cv2", "sweeps"):
        (blocked / f"{name}.py").write_text("raise ImportError('blocked')")
    variables = environment() | {"TRITON_INTERPRET": "1"}
    variables["PYTHONPATH"] = os.pathsep.join([str(blocked), str(ROOT)])
    folder = tmp_path / "results"
    args = ["-m", "benchmarks.gpu", "--device", "cpu", "--rehearse", "--minutes", "14", "--output", str(folder)]
    done = subprocess.run([sys.executable, *args], cwd=ROOT, env=variables, capture_output=True, text=True)
    found = json.loads((folder / "results.json").read_text())
    assert list(found) == [step.name for step in steps()]
    # timm is optional; lightning is installed
    failed = {name: result["status"] for name, result in found.items() if result["status"] != "ok"}
    assert not [name for name in failed if "timm" not in name and "vit" not in name], failed
    assert "What should be changed:\nno GPU: this was a rehearsal, change nothing" in done.stdout
    assert (folder / "report.md").read_text().startswith("# GPU benchmark")
    assert "Self CPU" in (folder / f"profile_{OPERATOR.name}.txt".replace(" ", "_")).read_text()
