"""Mutated configurations and sweep files: refused in one line that names option, value and what is allowed."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from swin_lightning.errors import UserError
from swin_lightning.sweep.sweep_file import read_sweep
from tests.support.fuzz import MEANINGLESS, cases, outcome
from tests.sweep.fake_trials import changed, write

HELPFUL = r"expected|did you mean|set |lower|use |give|keep|write|start from|choose|not valid YAML|see |is not logged"


def check(count, seed):
    results = [(arguments, *outcome(arguments)) for arguments in cases(count, seed)]
    assert not [(arguments, kind, text) for arguments, kind, text in results if kind != "refused"]
    messages = [text for _, _, text in results]
    assert not [
        text for text in messages if "\n" in text or len(text) > 700 or re.search(r"<class|NestedArg|typing\.", text)
    ]
    helpful = sum(re.search(HELPFUL, text) is not None for text in messages)
    assert helpful >= 0.9 * count, Counter(text for text in messages if not re.search(HELPFUL, text)).most_common(20)
    assert not Path("ran").exists()


def test_some_mutated_configurations():
    check(12, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_configurations():
    check(900, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mutated_sweep_files():
    rng = random.Random(0)
    accepted = []
    options = sorted(name for name in MEANINGLESS if name.startswith(("model.", "data.", "ema.")))
    for _ in range(120):
        option = rng.choice(options)
        number = rng.choice([value for value in MEANINGLESS[option] if value not in ("null", "x" * 300)])
        kind = rng.choice(["values", "metric", "goal", "values"])
        mutated = {
            "values": {"parameters": {option: {"values": [number]}}},
            "metric": {"metric": {"name": f"val/{rng.choice('abcdefg')}", "goal": "maximize"}},
            "goal": {"metric": {"name": "val/loss", "goal": "maximize"}},
        }[kind]
        try:
            read_sweep(write(changed(**mutated)))
        except UserError:
            continue
        accepted.append(mutated)
    assert not accepted
