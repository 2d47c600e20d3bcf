"""`swin-lightning completion bash|zsh`: a static script with all commands, options, experiments and values of options.

The script of shtab, which jsonargparse supports, is not used: for every option that takes a class it collects all
subclasses, such as all modules of torch.nn, and does not finish within ten minutes.
"""

import argparse
import contextlib
import inspect
import io
import re
from collections.abc import Iterable

from swin_lightning.commands import COMMANDS, TRAINER_COMMANDS, load_command
from swin_lightning.errors import CommandParser

SCRIPT = """# Completion of swin-lightning, written by `swin-lightning completion {shell}`.
_swin_lightning() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} option=${{COMP_WORDS[COMP_CWORD-1]}} start= names= options=
  if [[ $current == = ]]; then # bash splits --option=value
    current=
  elif [[ $option == = ]]; then
    option=${{COMP_WORDS[COMP_CWORD-2]}}
  elif [[ $current == --*=* ]]; then
    option=${{current%%=*}} start=${{current%%=*}}= current=${{current#*=}}
  fi
  if [[ $COMP_CWORD == 1 ]]; then
    names="{commands}" options="--help --version"
  else
    case $option in
      -c | --config)
        names="{experiments} $(find experiments -name '*.yaml' ! -name base.yaml ! -path '*/sweeps/*' \\
          2>/dev/null | sed -e 's,^experiments/,,' -e 's,.yaml$,,')" ;;
{values}
      --*.*) ;; # any value: file names
      *)
        case ${{COMP_WORDS[1]}} in
{arguments}
        esac ;;
    esac
  fi
  [[ $current == -* || -z $names ]] && names=$options
  COMPREPLY=($(compgen -P "$start" -W "$names" -- "$current"))
}}
complete -o default -F _swin_lightning swin-lightning
"""
ZSH_HEADER = """(( $+functions[compdef] )) || { autoload -U compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""
CLASSES = ("model", "model.backbone", "data")  # options of known classes


def completion(args: list[str]) -> None:
    """Print a completion script. Save it, since generating it takes seconds.

    bash: swin-lightning completion bash > ~/.local/share/bash-completion/completions/swin-lightning
    zsh: swin-lightning completion zsh > ~/.swin-lightning.zsh, and in ~/.zshrc: source ~/.swin-lightning.zsh
    """
    parser = CommandParser(
        "swin-lightning completion",
        description=inspect.getdoc(completion),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(args).shell
    print((ZSH_HEADER if shell == "zsh" else "") + script(shell), end="")


def script(shell: str) -> str:
    """The completion script; zsh runs that of bash by its `bashcompinit`."""
    from swin_lightning.experiment_files import installed_experiments

    folder = installed_experiments()
    files = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml") if path.stem != "base")
    choices = trainer_options()
    fit_options = ["-c", *choices, "--help"]
    arguments = [case([name for name in TRAINER_COMMANDS if name != "predict"], options=fit_options)]
    for command in ("predict", *COMMANDS):
        subcommands, own = command_options(command)
        names = subcommands if command != "sweep" else [path.name for path in files if path.parts[0] == "sweeps"]
        arguments.append(
            case([command], names, [*own, *(fit_options if command in ("predict", "benchmark") else ["--help"])])
        )
        choices |= {option: values for option, values in own.items() if values}
    options_by_values: dict[tuple[str, ...], list[str]] = {}
    for option, values in choices.items():
        options_by_values.setdefault(tuple(values), []).append(option)
    return SCRIPT.format(
        shell=shell,
        commands=" ".join([*TRAINER_COMMANDS, *COMMANDS]),
        experiments=" ".join(path.as_posix() for path in files if path.parts[0] != "sweeps"),
        values="\n".join(f"      {case(options, values)}" for values, options in options_by_values.items() if values),
        arguments="\n".join(f"          {line}" for line in arguments),
    )


def case(patterns: Iterable[str], names: Iterable[str] = (), options: Iterable[str] = ()) -> str:
    """A line of the shell's `case`."""
    given = {"names": " ".join(names), "options": " ".join(options)}
    assignments = [f'{variable}="{words}"' for variable, words in given.items() if words]
    return f"{' | '.join(patterns)}) {' '.join(assignments)} ;;"


def trainer_options() -> dict[str, list[str]]:
    """Options of `fit`, with those of all classes that this package provides, and the values to choose from."""
    from swin_lightning import options
    from swin_lightning.config_check import GROUPS
    from swin_lightning.signatures import parameters

    found = {"--ckpt_path": ["last", "best"], "--experiment": [], "--seed_everything": []}
    found |= {"--test_after_fit": ["true", "false"], "--print_config": []}
    targets = {group: [cls] for group, cls in GROUPS.items()}
    for key, known in zip(CLASSES, (options.task_classes(), options.backbones(), options.data_modules()), strict=True):
        found |= {f"--{key}": list(known), f"--{key}.help": list(known)}
        targets[key] = list(known.values())
    for key, classes in targets.items():
        for cls in classes:
            for name, parameter in parameters(cls).items():
                if f"{key}.{name}" not in options.LINKED:
                    found.setdefault(f"--{key}.{name}", options.choices(parameter.type))
    return found


def command_options(*command: str) -> tuple[list[str], dict[str, list[str]]]:
    """Subcommands, and options with the values to choose from, as in the help of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        load_command(command[0])([*command[1:], "--help"])
    lines = text.getvalue()
    positional = re.search(r"^  \{(.+)\}$", lines, re.MULTILINE)
    found = {
        option: values.split(",") if values else []
        for option, values in re.findall(r"^  (--[\w-]+)(?: \{(.+?)\})?", lines, re.MULTILINE)
    }
    names = positional[1].split(",") if positional else []
    for name in names if len(command) == 1 and command[0] != "completion" else []:
        found |= command_options(*command, name)[1]
    return names, found
