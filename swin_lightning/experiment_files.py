"""Experiments, overlays and sweeps: found by name from any folder, and `swin-lightning experiments` that lists them."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from swin_lightning.errors import CommandParser, UserError

PACKAGE = Path(__file__).parent
LOCAL = Path("experiments")  # in the working directory
USES = {
    "experiments": "swin-lightning fit -c NAME",
    "overlays": "swin-lightning fit -c EXPERIMENT -c NAME",
    "sweeps": "swin-lightning sweep NAME",
}


def installed_experiments() -> Path:
    """The folder `experiments` of the checkout, or of the installed package."""
    for folder in (PACKAGE.parent / "experiments", PACKAGE / "experiments"):
        if (folder / "base.yaml").is_file():
            return folder
    raise AssertionError(f"no experiments/base.yaml beside or in {PACKAGE}")


def find_experiment(name: str) -> Path:
    """The file that `-c NAME` means: a path, or a name such as `digits_swin_micro` or `hardware/gpu`.

    A name is looked up in the working directory, in its `experiments/`, and in the installed package.

    Raises:
        UserError: If there is no such file.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    folders = (Path(), LOCAL, installed_experiments())
    candidates = [folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".yaml", ".yml")]
    parts = given.parts  # `experiments/NAME.yaml` also works where there is no checkout
    if not given.is_absolute() and parts[:1] == ("experiments",) and len(parts) > 1:
        candidates.append(installed_experiments().joinpath(*parts[1:]))
    for path in candidates:
        if path.is_file():
            return path
    known = {str(path.relative_to(folder).with_suffix("")) for folder in folders[1:] for path in folder.rglob("*.yaml")}
    near = difflib.get_close_matches(given.stem if given.suffix else name, sorted(known - {"base"}), n=1)
    hint = f"did you mean {near[0]}?" if near else "`swin-lightning experiments` lists them"
    raise UserError(f"-c {name}: no such file or experiment; {hint}")


def experiments(args: list[str]) -> None:
    """List the experiments, overlays and sweeps of the working directory and of the package, with a line for each."""
    parser = CommandParser("swin-lightning experiments", description=experiments.__doc__)
    parser.add_argument("word", metavar="WORD", nargs="?", default="", help="only those whose name contains WORD")
    word = parser.parse_args(args).word
    found = {name: path for name, path in named_files().items() if word in name}
    if not found:
        raise UserError(f"no experiment contains {word!r}; `swin-lightning experiments` lists all")
    names = {kind: [name for name in found if _kind(name) == kind] for kind in USES}
    for kind in [kind for kind in USES if names[kind]]:
        print(f"{kind}: {USES[kind]}")
        rows = [(name.removeprefix("sweeps/"), description(found[name])) for name in names[kind]]
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            print(f"  {name:{width}}  {text}".rstrip())
        print()
    print(f"files: {installed_experiments()}" + (f", {LOCAL}/" if LOCAL.is_dir() else ""))


def named_files() -> dict[str, Path]:
    """Name -> file, sorted by name. A file in `experiments/` of the working directory comes before one of the package.

    Files of the working directory itself are found by `-c` as well, but not listed: they may be anything.
    """
    found: dict[str, Path] = {}
    for folder in (LOCAL, installed_experiments()):
        for path in folder.rglob("*.y*ml"):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return {name: found[name] for name in sorted(found) if name != "base"}


def description(path: Path) -> str:
    """The first sentence of the comment on top of a file."""
    text = " ".join(_header(path))
    sentence = re.match(r"(?:Overlay: )?(.*?)[.]?(?:$|(?<=[.])\s)", text)
    return sentence[1] if sentence else text


# helpers


def _kind(name: str) -> str:
    folder = name.rpartition("/")[0]
    return "sweeps" if folder == "sweeps" else "overlays" if folder else "experiments"


def _header(path: Path) -> Iterator[str]:
    """The lines of the first paragraph of comments."""
    begun = False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.removeprefix("#").strip()
        if words.startswith("yaml-language-server:"):
            continue
        if not line.startswith("#") or (begun and not words):
            return
        if words:
            begun = True
            yield words
