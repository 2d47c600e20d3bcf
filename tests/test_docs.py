"""Documentation: links and anchors exist, commands and configuration examples parse, Python examples import."""

import ast
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from swin_lightning import config, predict
from swin_lightning.benchmark import build_parser
from swin_lightning.commands import COMMANDS, TRAINER_COMMANDS, asks_for_help, names_experiment
from swin_lightning.sweep.sweep_file import find_sweep
from tests.support.cli import DIGITS, ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name / "README.md" for name in ("benchmarks", "experiments")),
]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page, language):
    """The code blocks of a page, without indentation."""
    for indent, found, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def files(page):
    """Examples that are files: a comment with the name is their first line."""
    for language in ("yaml", "python"):
        for text in blocks(page, language):
            if match := re.match(r"# ([\w/]+\.(?:yaml|py))\n", text):
                yield match[1], text


def commands(page):
    """Commands of a page as lists of words: of bash blocks, one per line, without environment variables."""
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next((i for i, word in enumerate(words) if word in ("&&", ">", "|")), len(words))
                yield words[:end]
                words = words[end + 1 :]


def own_command(words):
    """The arguments of swin-lightning in a command, also behind srun or torchrun; None without it."""
    for start in (["swin-lightning"], ["-m", "swin_lightning"]):
        for i in range(len(words)):
            if words[i : i + len(start)] == start:
                return words[i + len(start) :]
    return None


def slugs(page):
    """The anchors of the headings of a page, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_exist(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target), link


COMMAND_LINES = [(page, words) for page in PAGES for words in commands(page) if own_command(words) is not None]


@pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=lambda v: name_of(v) if isinstance(v, Path) else v[1])
def test_command_parses(page, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # as the command line does with the working directory
    for name, text in files(page):
        Path(name).write_text(text, encoding="utf-8")
    run = Path("runs/EXPERIMENT/RUN")  # a placeholder
    run.mkdir(parents=True)
    shutil.copy(DIGITS, run / "config.yaml")
    command, *arguments = own_command(words)
    if command == "predict" and not names_experiment(arguments):
        assert predict.build_parser().parse_intermixed_args(arguments).images
    elif command in TRAINER_COMMANDS and not any(map(asks_for_help, arguments)):
        printing = [word for word in arguments if word.startswith("--print_config")]
        config.load([word for word in arguments if word not in printing])
    elif command == "benchmark":
        options, rest = build_parser().parse_known_args(arguments)
        assert config.load(rest) if options.subject != "inference" else not rest
    elif command == "sweep" and arguments[0] != "FILE":
        assert find_sweep(arguments[0]).is_file() or (ROOT / arguments[0]).is_file()
    else:
        assert command in {*TRAINER_COMMANDS, *COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configuration_examples_parse(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    examples = dict(files(page))
    for name, text in examples.items():
        Path(name).write_text(text, encoding="utf-8")
    for name, text in examples.items():
        if name.endswith(".yaml"):
            experiment = [] if re.search(r"^data:", text, re.MULTILINE) else ["-c", DIGITS]
            config.load([*experiment, "-c", name])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_imports_of_python_examples_and_modules_of_commands_exist(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for words in commands(page):
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words


def test_readme_starts_with_the_two_commands_and_is_short():
    first, second, *_ = blocks(ROOT / "README.md", "bash")
    install = 'python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e ".[dev]"'
    assert first == f"{install} && swin-lightning fit -c experiments/digits_swin_micro.yaml\n"
    assert second == f"{install} && pytest\n"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
