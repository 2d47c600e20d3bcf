"""The commands `fit`, `validate`, `test` and `predict`: LightningCLI with run folders and checkpoints by name."""

import logging
import os
import secrets
import signal
import sys
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from swin_lightning import allocator, config, launchers
from swin_lightning.callbacks import (
    BestMetric,
    CompileTimeLogger,
    EpochSummary,
    FromScratch,
    ProgressBar,
    ResumeLoggers,
    SaveConfig,
    SplitFiles,
    TrainingMonitor,
)
from swin_lightning.checkpoint_classes import check_block, named_classes
from swin_lightning.checkpointing import PerStepSeed
from swin_lightning.commands import COMMANDS, asks_for_help, check_command, load_command, names_experiment
from swin_lightning.data import ImageDataModule, ImageNet
from swin_lightning.errors import UserError, shorten, user_error
from swin_lightning.experiment_files import installed_experiments
from swin_lightning.loggers import place_in_run_folder
from swin_lightning.models.registry import compare_to_published
from swin_lightning.models.state_check import check_state, limit_to_state
from swin_lightning.models.weights import read_checkpoint
from swin_lightning.monitors import DEFAULT_MONITOR, MonitorCheck, check_monitor
from swin_lightning.noise import drop_noise
from swin_lightning.prediction_callbacks import PredictionReport, PredictionWriter
from swin_lightning.prediction_file import PredictionFile
from swin_lightning.resume import CheckpointTime, SameCheckpoint, check_training_state
from swin_lightning.runs import RunFolder, find_checkpoint
from swin_lightning.sample_position import SamplePosition
from swin_lightning.shutdown import Interrupted, RankError, Shutdown, end_with_parent, raise_on_signals
from swin_lightning.strategies import check_strategy, restore_progress
from swin_lightning.tasks import Task
from swin_lightning.tasks.loading import stored_arguments
from swin_lightning.trainer_precision import trainer_precision
from swin_lightning.wandb_runs import ended_by_sweep, finish_wandb

# the run folder and its checkpoint, for the ranks that Lightning starts on this machine
RUN_DIR_ENV, CHECKPOINT_ENV = "SWIN_LIGHTNING_RUN_DIR", "SWIN_LIGHTNING_CHECKPOINT"
RESTART_WAIT = 60.0  # seconds until the process that a restart replaces has ended
LINKED = {"num_classes", "class_names", "class_weights"}  # arguments of the model that the data module provides

log = logging.getLogger("swin_lightning")


class CLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule.

    Attributes:
        run: The run folder.
        trainer, model, datamodule: As in LightningCLI.
    """

    def __init__(self, args: list[str]) -> None:
        description = f"Train and evaluate. Other commands: {', '.join(COMMANDS)}."
        base = str(installed_experiments() / "base.yaml")
        self._command = args[0] if args else ""
        with ExitStack() as self._until_end:
            super().__init__(
                save_config_callback=None,  # see instantiate_trainer
                parser_class=config.Parser,
                parser_kwargs={
                    "description": description,
                    **{name: {"default_config_files": [base]} for name in self.subcommands()},
                },
                auto_configure_optimizers=False,
                args=args,
            )

    @property
    def run_dir(self) -> Path:
        """Path of the run folder."""
        return self.run.path

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in LightningCLI
        """Only the command that runs gets a parser, which halves the time to parse; all without one, for messages."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in commands if name == self._command} or commands

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """None of Lightning's."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """None of Lightning's."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        config.add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        arguments = config.resolve_experiments(list(args or []))
        self.config = config.parse(parser, arguments)
        self.planned_epochs = config.planned_epochs(arguments)
        options = self.config[self.config.subcommand]
        options.experiment = options.experiment or config.experiment_name(arguments)
        self.run = self._find_run(options, arguments)
        # LightningCLI would now merge the hyperparameters of the checkpoint, and stumble over linked arguments
        self.ckpt_path, options.ckpt_path = options.ckpt_path, None

    def before_instantiate_classes(self) -> None:
        """Take the model from the checkpoint, keep the configuration, then set the paths of this run."""
        options = self.config[self.subcommand]
        self.checkpoint_classes = None
        self.checkpoint_state: object = None  # what the file has as its state dict
        if self.ckpt_path is not None:
            options.ckpt_path = self.ckpt_path
            self._use_checkpoint_config()
            options = self.config[self.subcommand]
        if self.subcommand == "fit" and options.trainer.precision is None:  # a resumed run keeps its precision
            options.trainer.precision = self.run.read_config().get("trainer", {}).get("precision")
        self.saved_config = self._dump()  # without paths of this run: it can be started again
        options.weights_only = True  # a checkpoint never runs code
        if "verbose" in options:
            options.verbose = False  # one line says the same, see _print_result
        if self.subcommand == "predict":
            options.trainer.logger = False  # the result is a file
            options.return_predictions = False  # they would fill the memory
        loggers = options.trainer.logger if isinstance(options.trainer.logger, list) else [options.trainer.logger]
        for logger in loggers:
            if isinstance(logger, Namespace):
                place_in_run_folder(logger, self.run)
        options.checkpoint.dirpath = options.checkpoint.dirpath or str(self.run.checkpoints)
        options.trainer.default_root_dir = options.trainer.default_root_dir or str(self.run.path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with its callbacks."""
        options = self.config_init[self.subcommand]
        trainer: dict[str, Any] = {**options.trainer, **kwargs}
        check_strategy(trainer["strategy"], trainer["sync_batchnorm"])
        trainer["precision"] = trainer_precision(trainer, self.model, self.datamodule)
        self.saved_config["trainer"]["precision"] = trainer["precision"]
        if (line := allocator.describe()) and _is_rank_zero():
            log.info(line)
        if trainer["gradient_clip_val"] and not self.model.automatic_optimization:
            log.warning(
                f"trainer.gradient_clip_val {trainer['gradient_clip_val']} has no effect: "
                f"{type(self.model).__name__} optimizes manually; clip in its training_step"
            )
            trainer["gradient_clip_val"] = None
        trainer |= launchers.launched_processes(trainer["plugins"], trainer["devices"])
        launchers.open_own_store()
        self._until_end.enter_context(launchers.requeue_on_signal(trainer["plugins"]))
        own = trainer["callbacks"] or []
        own = own if isinstance(own, list) else [own]
        dry_run = bool(trainer["fast_dev_run"])
        if trainer["barebones"]:
            trainer.update(without_overhead(trainer))
        if dry_run:  # Lightning would still write a last checkpoint
            trainer["enable_checkpointing"] = False
        self.checkpoint = options.checkpoint
        optional = [callback for callback in (options.ema, options.early_stopping) if callback.enabled]
        if self.subcommand == "fit":
            for callback in (self.checkpoint, *optional, *own):
                check_monitor(callback, self.model, only_ours=not own)
        monitor = self.checkpoint.monitor
        # ours is the first checkpoint callback, which Lightning and loggers take for that of the run; last.ckpt has
        # the state of all others
        saves = trainer["enable_checkpointing"] is not False
        callbacks = [
            *([self.checkpoint] if saves else []),
            *own,
            *optional,
            SameCheckpoint(self.ckpt_path),
            CheckpointTime(self.run),
            PerStepSeed(),
            options.non_finite,
            MonitorCheck(),
            ResumeLoggers(),
            SamplePosition(),
            TrainingMonitor(),
            FromScratch(),
            SplitFiles(self.run),
            BestMetric(),
            *([BestMetric(monitor, self.checkpoint.mode)] if monitor != DEFAULT_MONITOR else []),
            PredictionReport(self.run),
            PredictionWriter(PredictionFile(self.run.predictions)),
            *([self.checkpoint.last] if saves else []),
        ]
        if getattr(self.model, "compile_backbone", False):
            callbacks.append(CompileTimeLogger())
        if trainer["enable_progress_bar"] is not False:
            callbacks.append(ProgressBar(monitor) if sys.stdout.isatty() else EpochSummary(monitor))
            trainer["enable_progress_bar"] = sys.stdout.isatty()
        if not dry_run:
            text = yaml.safe_dump(self.saved_config, sort_keys=False, allow_unicode=True)
            callbacks.append(SaveConfig(self.run, text, config.flatten(self.saved_config), str(self.subcommand)))
        try:
            return Trainer(**{**trainer, "callbacks": [Shutdown(), *callbacks]})
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            given = f"accelerator {trainer['accelerator']}, devices {trainer['devices']}"
            raise UserError(f"trainer: {shorten(error, 300)} Given: {given}; use this machine's devices") from error

    def instantiate_classes(self) -> None:
        """Build the model and the data module; those of a checkpoint may not be larger than what it holds."""
        if self.ckpt_path is None:
            return super().instantiate_classes()
        with limit_to_state(self.checkpoint_state, f"checkpoint {self.ckpt_path!r}"):
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        self.model.planned_epochs = self.planned_epochs
        found = self.model.hparams.get("num_classes")
        if self.checkpoint_classes is not None and self.checkpoint_classes != found:
            raise UserError(
                f"the checkpoint has {self.checkpoint_classes} classes and the data has {found}; "
                "use the data it was trained on, or start from its parameters with --model.weights"
            )
        if self.checkpoint_state is not None and isinstance(self.model, Task) and self.model.strict_loading:
            check_state(self.checkpoint_state, self.model, f"checkpoint {self.ckpt_path!r}")
        self.checkpoint_state = None  # the Trainer reads the file

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last weights if there is none."""
        if not self.config_init.fit.test_after_fit:
            return
        if type(self.model).test_step is LightningModule.test_step:
            print(f"no test: {type(self.model).__name__} has no test_step", flush=True)
            return
        if self.trainer.barebones:
            print("no test: trainer.barebones logs nothing", flush=True)
            return
        last = Path(str(self.checkpoint.dirpath)) / "last.ckpt"
        if self.trainer.global_step == 0 and last.is_file():  # ddp_spawn trained in other processes
            restore_progress(self.trainer, read_checkpoint(str(last)))
        best = self.checkpoint.best_model_path or None  # without one, the last weights are tested
        if isinstance(self.datamodule, ImageDataModule) and not self.datamodule.has_test_labels():
            self.trainer.predict(self.model, self.datamodule, None, False, best, weights_only=True)
            return
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        self.after_test()

    def after_validate(self) -> None:
        self._print_result("val")

    def after_test(self) -> None:
        self._print_result("test")

    # helpers

    def _find_run(self, options: Namespace, arguments: list[str]) -> RunFolder:
        """Resolve `--ckpt_path last|best`, and find and lock the run folder.

        It is that of the checkpoint when a run is resumed. A job of SLURM or torchrun, and a trial of a sweep, has an
        id that stays: what an earlier start of it has left is resumed.
        """
        fitting = self.config.subcommand == "fit"
        rank_zero = _is_rank_zero()
        if not rank_zero and RUN_DIR_ENV in os.environ:  # started by rank 0
            options.ckpt_path = os.environ.get(CHECKPOINT_ENV)
            return RunFolder(Path(os.environ[RUN_DIR_ENV]))
        job_id = os.environ.get("WANDB_RUN_ID") or (launchers.run_id(arguments) if fitting else None)
        run = None
        if options.ckpt_path in ("last", "best"):
            options.ckpt_path = str(find_checkpoint(options.experiment, options.ckpt_path))
        if options.ckpt_path is not None:
            run = RunFolder.of_checkpoint(options.ckpt_path) if fitting else None
        elif job_id is not None and fitting:
            run = RunFolder.with_id(job_id, experiment=options.experiment)
        restarted = run is not None and options.ckpt_path is None
        run = run or RunFolder.new(options.experiment, job_id or secrets.token_hex(4))
        if fitting and rank_zero and not options.trainer.fast_dev_run:
            self._until_end.enter_context(run.lock(RESTART_WAIT if restarted else 0))
        if restarted and run.last.is_file():
            options.ckpt_path = str(run.last)
        if rank_zero:
            os.environ[RUN_DIR_ENV] = str(run.path)
            os.environ.pop(CHECKPOINT_ENV, None)
            if options.ckpt_path is not None:
                os.environ[CHECKPOINT_ENV] = options.ckpt_path
        return run

    def _use_checkpoint_config(self) -> None:
        """Take the model's configuration from the checkpoint, and say what it overrides."""
        assert self.ckpt_path is not None
        where = f"checkpoint {self.ckpt_path!r}"
        content = read_checkpoint(self.ckpt_path)
        if "state_dict" not in content or "global_step" not in content:
            raise UserError(f"{where} is not a checkpoint of a run; use --model.weights to load parameters")
        if self.subcommand == "fit":
            check_training_state(content, where)
        self.checkpoint_state = content["state_dict"]
        stored = stored_arguments(content, where)
        self.checkpoint_classes = stored.get("num_classes")
        if not stored:  # a LightningModule that does not save its hyperparameters
            return
        options = self.config[self.subcommand]
        class_path = stored.pop("_class_path", options.model.class_path)
        stored = {key: value for key, value in stored.items() if key not in LINKED and key != "_instantiator"}
        model = {"class_path": class_path, "init_args": stored}
        check_block(model, where, [*options.allow_classes.split(","), *named_classes(options.model.as_dict())])
        parsed = self.parser.parse_object({self.subcommand: {"model": model}}, deepcopy(self.config))
        ours = config.flatten({"model": options.model.as_dict()})
        theirs = config.flatten({"model": parsed[self.subcommand].model.as_dict()})
        changed = [f"{key}: {ours.get(key)} -> {theirs[key]}" for key in theirs if ours.get(key) != theirs[key]]
        if changed and _is_rank_zero():
            print(f"the checkpoint overrides {', '.join(changed)}; to change them use --model.weights", flush=True)
        self.config = parsed

    def _dump(self) -> dict[str, Any]:
        """The configuration as plain values, without links and without the subcommand."""
        nested = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        options: dict[str, Any] = nested[self.subcommand]
        return options

    def _print_result(self, split: str) -> None:
        if not self.trainer.is_global_zero:
            return
        values = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith(f"{split}/")}
        known = sorted((name, value) for name, value in values.items() if value == value)  # NaN: no labelled image
        print("  ".join(f"{name} {value:.4f}" for name, value in known) or f"{split}: no labelled images")
        if isinstance(self.datamodule, ImageNet) and {f"{split}/acc", f"{split}/acc5"} <= values.keys():
            options = self.config[self.subcommand]
            backbone = options.model.init_args.get("backbone")
            accuracy, protocol = (values[f"{split}/acc"], values[f"{split}/acc5"]), self.datamodule.eval_protocol()
            lines = compare_to_published(backbone.class_path, options.experiment, *accuracy, protocol)
            if backbone and lines:
                print(lines)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"run folder: {self.run.path}", flush=True)


def main(args: list[str] | None = None) -> CLI | None:
    """Run the command line.

    Args:
        args: Arguments, for use from Python; those of the process by default.

    Returns:
        The finished command line with `trainer`, `model`, `datamodule` and `run`; None for commands without a Trainer.

    Raises:
        UserError: For a mistake in arguments, files or data, with a message of one line.
    """
    argv = [arg for arg in (sys.argv[1:] if args is None else args) if not arg.startswith("--_wandb")]
    drop_noise()
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # classes in files of the working directory can be named
    try:
        if argv and argv[0] in COMMANDS:
            load_command(argv[0])(argv[1:])
            return None
        if argv and argv[0] not in ("-h", "--help"):
            check_command(argv[0])
        if argv and argv[0] == "predict" and not names_experiment(argv[1:]):
            with raise_on_signals():
                load_command("predict")(argv[1:])
            return None
        if any(map(asks_for_help, argv[1:])):
            from swin_lightning.help import print_help

            print_help(argv)
            return None
        if RUN_DIR_ENV in os.environ and not _is_rank_zero():
            end_with_parent()
        with raise_on_signals():
            return CLI(argv)
    except Interrupted as interrupted:
        if interrupted.signal != signal.SIGTERM or not ended_by_sweep():
            raise
        return None
    except Exception as error:
        if isinstance(error.__cause__, Interrupted | RankError):  # this rank fails because another one has ended
            raise error.__cause__ from None
        mistake = user_error(error)
        if mistake is None:
            raise
        raise mistake from error
    finally:
        finish_wandb()


# helpers


def without_overhead(trainer: dict[str, Any]) -> dict[str, Any]:
    """Options of the Trainer that `barebones` excludes, as Lightning wants them; those that were set are dropped."""
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    return {**off, "log_every_n_steps": 0, "num_sanity_val_steps": 0}


def _is_rank_zero() -> bool:
    """Whether this process is, or will start, rank 0; known before there is a Trainer."""
    return getattr(rank_zero_only, "rank", 0) == 0
