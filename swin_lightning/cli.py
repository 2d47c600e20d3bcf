"""The command line of training and evaluation: configuration files, the run folder, checkpoints by name."""

import logging
import os
import re
import secrets
import sys
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from swin_lightning import allocator
from swin_lightning.callbacks import (
    BestMetric,
    CompileTimeLogger,
    EarlyStopping,
    EpochSummary,
    PredictionReport,
    PredictionWriter,
    ProgressBar,
    TrainingMonitor,
)
from swin_lightning.checkpointing import EMA, Checkpoint, PerStepSeed
from swin_lightning.commands import COMMANDS, RUNS, find
from swin_lightning.config import Parser, flatten
from swin_lightning.data import ImageDataModule, ImageNet
from swin_lightning.errors import UserError, user_error
from swin_lightning.loggers import ended_by_sweep, finish_wandb
from swin_lightning.models.registry import compare_to_published
from swin_lightning.models.weights import read_checkpoint
from swin_lightning.tasks.classification import SwinClassifier

RUNS_DIR = "SWIN_LIGHTNING_RUNS"  # where runs go, in place of runs/
RUN_DIR = "SWIN_LIGHTNING_RUN_DIR"  # tells the ranks that Lightning starts on this machine where the run lives


class SaveConfig(SaveConfigCallback):
    """Keeps the configuration in the run folder and sends it, flattened to the command line's keys, to the loggers."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        earlier = len(list(folder.glob("config*.yaml")))  # a resumed run keeps the first
        (folder / (f"config-{earlier + 1}.yaml" if earlier else "config.yaml")).write_text(text)
        flat = {key.replace(".init_args.", "."): value for key, value in flatten(yaml.safe_load(text)).items()}
        for logger in trainer.loggers:
            logger.log_hyperparams(flat)


class CLI(LightningCLI):
    """LightningCLI for SwinClassifier and any `ImageDataModule`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str | None, help="Name of the experiment; by default the first file's."
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="End `fit` by testing the best checkpoint."
        )
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        argv = list(sys.argv[1:] if args is None else args)
        self.config = parser.parse_args(argv)
        config = self.config[self.config.subcommand]
        config.experiment = config.experiment or _experiment_name(argv)
        self.run_dir = self._find_run(config)

    def _find_run(self, config: Namespace) -> Path:
        """Resolve `--ckpt_path last|best` and say where the run lives: a resumed one in its own folder.

        A sweep gives its trials their ids. Where a trial with this id has left a checkpoint, it goes on from there.
        """
        experiment = Path(os.environ.get(RUNS_DIR, "runs")) / config.experiment
        run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = str(_latest_checkpoint(experiment, config.ckpt_path))
        elif config.ckpt_path is None and self.config.subcommand == "fit":
            interrupted = sorted(experiment.glob(f"*-{run_id}/checkpoints/last.ckpt"))
            config.ckpt_path = str(interrupted[-1]) if interrupted else None
        run_dir = experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_id}"
        if config.ckpt_path is not None and self.config.subcommand == "fit":
            folder = Path(config.ckpt_path).resolve().parent
            if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file():
                run_dir = Path(os.path.relpath(folder.parent))
        if not _get_rank():
            os.environ[RUN_DIR] = str(run_dir)
        return Path(os.environ.get(RUN_DIR, run_dir))

    def _parse_ckpt_path(self) -> None:
        """A checkpoint brings its model's configuration along; say what it overrides."""
        config = self.config[self.config.subcommand]
        if config.ckpt_path is None:
            return
        self.checkpoint_classes = None
        hparams = read_checkpoint(config.ckpt_path).get("hyper_parameters")
        if not isinstance(hparams, dict):
            raise UserError(
                f"checkpoint {config.ckpt_path!r} is not a checkpoint of a run; use --model.weights for parameters"
            )
        self.checkpoint_classes = hparams.get("num_classes")
        linked = {"num_classes", "class_names", "_instantiator"}
        stored = {key: value for key, value in hparams.items() if key not in linked}
        parsed = self.parser.parse_object({self.config.subcommand: {"model": stored}}, deepcopy(self.config))
        ours, theirs = flatten(config.model.as_dict()), flatten(parsed[self.config.subcommand].model.as_dict())
        changed = [f"model.{key}: {ours.get(key)} -> {theirs[key]}" for key in theirs if ours.get(key) != theirs[key]]
        if changed and not _get_rank():
            print(f"the checkpoint overrides {', '.join(changed)}; to train otherwise use --model.weights", flush=True)
        self.config = parsed

    def before_instantiate_classes(self) -> None:
        self.saved_config = deepcopy(self.config[self.subcommand])  # without this run's folder: it can be run again
        config = self.config[self.subcommand]
        if self.subcommand == "predict":
            config.trainer.logger = False  # its result is a file
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else []
        for logger in loggers:
            if logger.init_args.get("save_dir", "") is None:
                logger.init_args.save_dir = str(self.run_dir)
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(self.run_dir / "checkpoints")
        config.trainer.default_root_dir = config.trainer.default_root_dir or str(self.run_dir)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config["precision"] is None and config["accelerator"] != "cpu" and torch.cuda.is_available():
            config["precision"] = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else None
        if (line := allocator.describe()) and not _get_rank():
            logging.getLogger("swin_lightning").info(line)
        if dry := bool(config.get("fast_dev_run")):  # Lightning would still write a last checkpoint
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
            config["enable_checkpointing"] = False
        config["callbacks"] = list(config["callbacks"] or []) + [c for c in callbacks if getattr(c, "enabled", True)]
        config["callbacks"] += [
            PerStepSeed(),
            TrainingMonitor(),
            BestMetric(),
            PredictionReport(self.run_dir),
            PredictionWriter(self.run_dir),
        ]
        if self.config[self.subcommand].model.compile:
            config["callbacks"].append(CompileTimeLogger())
        if config.get("enable_progress_bar") is not False:
            config["callbacks"].append(ProgressBar() if sys.stdout.isatty() else EpochSummary())
            config["enable_progress_bar"] = sys.stdout.isatty()
        if not dry:
            config["callbacks"].append(SaveConfig(self._parser(self.subcommand), self.saved_config))
        return self.trainer_class(**config)

    def after_instantiate_classes(self) -> None:
        expected = getattr(self, "checkpoint_classes", None)
        if expected is not None and expected != self.model.num_classes:
            raise UserError(
                f"the checkpoint has {expected} classes and the data has {self.model.num_classes}; "
                f"use the data it was trained on, or start from its parameters with --model.weights"
            )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if "weights_only" in kwargs and kwargs["weights_only"] is None:
            kwargs["weights_only"] = True  # a checkpoint never runs code
        if "verbose" in kwargs:
            kwargs["verbose"] = False  # one line says the same, see _print_result
        return kwargs

    def after_fit(self) -> None:
        if self.config_init.fit.test_after_fit:
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False, weights_only=True
            )
            self.after_test()

    def after_validate(self) -> None:
        self._print_result("val")

    def after_test(self) -> None:
        self._print_result("test")

    def _print_result(self, split: str) -> None:
        if self.trainer.is_global_zero:
            values = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith(f"{split}/")}
            print("  ".join(f"{name} {value:.4f}" for name, value in sorted(values.items())))
            if isinstance(self.datamodule, ImageNet):
                backbone, name = self.saved_config.model.backbone, self.saved_config.experiment
                accuracy, protocol = (values[f"{split}/acc"], values[f"{split}/acc5"]), self.datamodule.eval_protocol()
                if lines := compare_to_published(backbone.class_path, name, *accuracy, protocol):
                    print(lines)
            if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                print(f"run folder: {self.run_dir}", flush=True)


class Dry(CLI):
    """The parser by itself: a configuration is checked, nothing is built, nothing runs."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(list(args or []))

    def _nothing(self, *_: Any) -> None:
        """In place of what a run would do."""

    before_instantiate_classes = instantiate_classes = after_instantiate_classes = _nothing
    _parse_ckpt_path = _set_seed = _nothing
    _run_subcommand = _nothing  # type: ignore[assignment]


def start(cli: type[CLI], args: list[str]) -> CLI:
    """The command line, with the arguments of `swin-lightning`."""
    return cli(
        SwinClassifier,
        ImageDataModule,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={
            "description": f"Train and use Swin Transformers. Also: {', '.join(COMMANDS)}; see --help.",
            **{name: {"default_config_files": [_base_config()]} for name in CLI.subcommands()},
        },
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=args,
    )


def main(args: list[str] | None = None) -> CLI | None:
    """Run the command line.

    Args:
        args: Arguments, for use from Python; those of the process by default.

    Returns:
        The finished command line, with its `trainer`, `model`, `datamodule` and `run_dir`; None for the commands that
        train nothing themselves.

    Raises:
        UserError: For a mistake in arguments, files or data, with a message of one line.
    """
    argv = [arg for arg in (sys.argv[1:] if args is None else args) if not arg.startswith("--_wandb")]
    _quiet()
    try:
        if argv and argv[0] in COMMANDS:
            return find(argv[0])(argv[1:])
        if argv and not argv[0].startswith("-") and argv[0] not in RUNS:
            raise UserError(f"unknown command {argv[0]!r}; choose one of {', '.join([*RUNS, *COMMANDS])}")
        return start(CLI, argv)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        raise mistake from error
    except SIGTERMException:
        if not ended_by_sweep():
            raise
        return None
    finally:
        finish_wandb()


# helpers


def _quiet() -> None:
    """Leave out what Lightning says on every run and no user can act on."""
    for message in (
        ".*LeafSpec.*",
        "The number of training batches .* is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",  # that of a resumed run
        "The dirpath has changed",  # a test run has a folder of its own
        "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler knows where it stands
    ):
        warnings.filterwarnings("ignore", message=message)
    noise = re.compile("💡|TPU available|Seed set|Restoring states|Loaded model weights|Found current_model_state")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not noise.match(record.getMessage()))
    log = logging.getLogger("swin_lightning")
    if not log.handlers:
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())


def _base_config() -> str:
    """`experiments/base.yaml` of the checkout, or of the installed package."""
    package = Path(__file__).parent
    folder = next(f for f in (package.parent / "experiments", package / "experiments") if (f / "base.yaml").is_file())
    return str(folder / "base.yaml")


def _experiment_name(argv: list[str]) -> str:
    """The name of the first configuration file, which is the experiment; the others are overlays."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag in ("-c", "--config"):
            return Path(value).stem
        if flag.startswith("--config="):
            return Path(flag.removeprefix("--config=")).stem
    return "unnamed"


def _latest_checkpoint(experiment: Path, name: str) -> Path:
    """The checkpoint `last` or `best` of the newest run that has one."""
    found = sorted(experiment.glob(f"*/checkpoints/{name}.ckpt"))
    if not found:
        raise UserError(f"--ckpt_path {name}: no run under {experiment} has a checkpoints/{name}.ckpt; give a path")
    return found[-1]
