"""Help of the commands: one page per trainer command, one class at a time, and the list of commands."""

import contextlib
import io
import subprocess
import sys

import pytest

from swin_lightning.cli import main
from swin_lightning.commands import COMMANDS, TRAINER_COMMANDS, check_command, overview
from swin_lightning.errors import UserError
from swin_lightning.options import LINKED, effective_config
from tests.support.cli import EXPERIMENTS, environment


def printed(*arguments):
    """What the command line prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(list(arguments))
    return output.getvalue()


def line_of(text, option):
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [option]]
    return line


@pytest.fixture(scope="module")
def page():
    return printed("fit", "--help", "-c", "digits_swin_micro", "--model.lr=0.25")


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
@pytest.mark.parametrize("experiment", [None, "digits_swin_micro", "imagenet_swinv2_tiny_patch4_window8_256"])
def test_page_fits_into_150_lines_of_120_columns(command, experiment):
    if command == "predict" and experiment is None:  # has another page, see test_predict.py
        experiment = "cifar10_swin_micro"
    text = printed(command, "--help", *(["-c", experiment] if experiment else []))
    assert text.count("\n") <= 150 and max(map(len, text.splitlines())) <= 120
    assert f"usage: swin-lightning {command} -c EXPERIMENT" in text
    assert "torch.nn" not in text
    for option in (
        "--model.lr",
        "--model.optimizer",
        "--data.batch_size",
        "--trainer.max_epochs",
        "--checkpoint.monitor",
    ):
        assert line_of(text, option)


def test_page_shows_type_value_in_force_and_meaning(page):
    assert line_of(page, "--model.lr").split()[1:7] == ["float", ">", "0", "<=", "1000", "0.25"]
    assert "Peak learning rate" in line_of(page, "--model.lr")
    assert line_of(page, "--model.warmup_epochs").split()[1:5] == ["float", ">=", "0", "4.0"]
    assert line_of(page, "--data.crop").startswith("  --data.crop             one of random_resized, pad, none  pad")
    assert "  40  " in line_of(page, "--trainer.max_epochs")
    assert line_of(page, "--trainer.gradient_clip_val").split()[-1] != "null"  # 5.0 of base.yaml


def test_page_has_the_options_of_the_classes_of_the_experiment(page):
    assert "model.backbone: swin_lightning.models.swin_micro_patch4_window4_32" in page
    assert "data: swin_lightning.data.Digits" in page
    assert line_of(page, "--model.backbone.drop_path_rate") and line_of(page, "--data.predict_path")
    assert "--data.path" not in page and "--data.path" in printed("fit", "-h", "-c", "cifar10_swin_micro")


def test_page_has_every_option_of_the_configuration(page):
    values = effective_config(["-c", "digits_swin_micro"])
    words = set(page.replace(",", " ").replace("--", " ").split())
    for key in vars(values.trainer):
        assert f"trainer.{key}" in words or key in words, key
    blocks = {"model": values.model.init_args, "model.backbone": values.model.init_args.backbone.init_args}
    for prefix, block in {**blocks, "data": values.data.init_args, "ema": values.ema}.items():
        keys = {f"{prefix}.{key}" for key in vars(block)}
        assert keys - LINKED <= words
        assert not keys & LINKED & words  # such as model.num_classes, which comes from the data


def test_page_of_an_own_class_without_docstring(tmp_path):
    (tmp_path / "undocumented_task.py").write_text(
        "from lightning import LightningModule\n"
        "class Mine(LightningModule):\n"
        "    def __init__(self, width: int, depth=3, **rest):\n"
        "        super().__init__()\n"
    )
    text = printed("fit", "--help", "--model=undocumented_task.Mine")
    assert "model: undocumented_task.Mine" in text and "--model.backbone" not in text.split("More options")[0]
    assert line_of(text, "--model.width").split()[1:] == ["int", "required"]
    assert line_of(text, "--model.depth").split()[1:] == ["any", "3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.help"], ["--model.lr", "--model.freeze"]),
        (["--model.help", "swin_lightning.SwinClassifier"], ["--model.label_smoothing"]),
        (["--data.help=swin_lightning.data.ImageFolder"], ["--data.path"]),
        (["--model.optimizer.help", "torch.optim.SGD"], ["--model.optimizer.momentum"]),
        (["--model.backbone.help", "swin_lightning.models.SwinTransformerV2"], ["--model.backbone.window_size"]),
        (["--trainer.logger.help", "swin_lightning.loggers.WandbLogger"], ["--trainer.logger.project"]),
        (["--trainer.logger.help"], ["swin_lightning.loggers.CSVLogger: ", "swin_lightning.loggers.WandbLogger: "]),
        (["--trainer.callbacks.help", "LearningRateMonitor"], ["--trainer.callbacks.logging_interval"]),
        (["--ema.help"], ["--ema.decay"]),
        (["--model.backbone.help", "swin_lightning.models.swin_tiny_patch4_window7_224"], ["drop_path_rate"]),
        (["-c", "digits_swin_micro", "--data.help"], ["swin_lightning.data.Digits: ", "--data.predict_path"]),
    ],
)
def test_help_of_one_class(arguments, words):
    text = printed("fit", *arguments)
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help", "-c", "digits_swin_macro"], "did you mean digits_swin_micro?"),
        (["--model.help", "nowhere.Mine"], "no class 'nowhere.Mine'"),
        (["--model.help", "SwinClasifier"], "did you mean SwinClassifier?"),
        (["--model.lr.help"], "--model.lr.help: the configuration gives no class for model.lr; name one"),
        (["--help", "-c"], "expected one argument"),
        (["--help", "--model.lrr=3"], "unknown option model.lrr; did you mean model.lr?"),
    ],
)
def test_mistakes_in_help(arguments, words):
    with pytest.raises(UserError) as caught:
        main(["fit", *arguments])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_overview_lists_every_command():
    lines = {line.split()[0]: line for line in overview().splitlines() if line.startswith("  ")}
    assert set(lines) == {*TRAINER_COMMANDS, *COMMANDS}
    assert "example: swin-lightning fit -c digits_swin_micro" in overview()
    assert (EXPERIMENTS / "digits_swin_micro.yaml").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_have_help(command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0


def test_unknown_command_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown command 'exprot'; did you mean export\?"):
        check_command("exprot")
    with pytest.raises(UserError, match="unknown command 'xyz'; choose one of fit, validate"):
        check_command("xyz")


def test_entry_point_lists_commands_without_heavy_imports():
    code = (
        "import sys; sys.argv = ['swin-lightning', '--help']; from swin_lightning.__main__ import console; console();"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == overview() + "\n"
    assert not {"torch", "lightning", "jsonargparse", "numpy", "wandb"} & set(done.stderr.split())
