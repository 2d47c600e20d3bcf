"""YAML files: limits, duplicate keys, tags, and errors with file and line."""

from pathlib import Path

import pytest
import yaml

from swin_lightning.errors import UserError
from swin_lightning.yaml_files import check_yaml, locate, read_yaml

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [\n", "x.yaml:2: not valid YAML: expected the node content"),
        (b"a: 1\nb: 2\na: 3\n", "x.yaml:3: a is given twice, first in line 1; keep one"),
        (b"m:\n  a: 1\n  a: 2\n", "x.yaml:3: a is given twice, first in line 2"),
        (bytes(range(256)), "x.yaml: not a text file in UTF-8; expected YAML"),
        (b"a: 1\0", "x.yaml: a binary file; expected YAML"),
        (
            b"a: !!python/object/apply:os.system [ls]\n",
            "x.yaml:1: tag !!python/object/apply:os.system is not",
        ),
        (b"? [a]\n: 1\n", "x.yaml:1: a list or mapping as a key; expected a name"),
        (BOMB.encode(), "x.yaml:6: more than 200000 values, with aliases (*name) replaced"),
        (b"[" * 5000, "x.yaml:1: nested more than 50 levels deep"),
        (b"model: &m {init_args: *m}\n", "x.yaml:1: *m is within what it stands for; write it out"),
        (b"a:\n  b: " + b"9" * 5000, "x.yaml:2: 9999"),
        (b" " * (16 * 2**20 + 1), "x.yaml: more than 16 MiB; expected a YAML file"),
    ],
)
def test_hostile_files_are_refused(content, message):
    Path("x.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml("x.yaml")
    assert str(caught.value).startswith(message)


def test_missing_file():
    with pytest.raises(UserError, match=r"^x.yaml: cannot be read: No such file"):
        read_yaml("x.yaml")


def test_usual_files_are_read_as_by_yaml():
    text = "a: &x {b: [1, 2.5, true, null, '3']}\nc: *x\nd:\n  <<: *x\n  e: 2020-01-01\n"
    Path("x.yaml").write_text(text)
    assert read_yaml("x.yaml") == yaml.safe_load(text)
    Path("x.yaml").write_text("")
    assert read_yaml("x.yaml") is None


def test_line_of_a_dotted_key():
    root = check_yaml("model:\n  init_args:\n    lr: 1\nmodel.backbone:\n  init_args: {a: 1}\n", "x")
    assert (locate(root, "model.lr"), locate(root, "model.backbone.a"), locate(root, "data")) == (3, 5, None)
