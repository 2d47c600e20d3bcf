"""The cost model of a compiled training step on a GPU."""

import subprocess
import sys

import pytest

from tests.support.cli import ROOT, environment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_operator_reduces_the_traffic_of_swin_t():
    """In a process of its own, since Triton must not be interpreted."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks.gpu.traffic"]
    variables = {name: value for name, value in environment().items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    megabytes = {name: int(text.split()[0]) for name, text in (line.split(": ") for line in done.stdout.splitlines())}
    assert megabytes["operator"] <= 360 < megabytes["general path"]
    assert megabytes["operator, half_residual"] < 0.97 * megabytes["operator"]
