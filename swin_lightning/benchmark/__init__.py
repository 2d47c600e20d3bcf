"""`swin-lightning benchmark`: the speed of an experiment on this machine.

Comparisons with other implementations are in the folder `benchmarks` of the repository.
"""

from swin_lightning.errors import CommandParser, UserError, add_allow_option

VARIANTS = ("eager", "compiled", "pt2", "onnx", "int8")  # of inference


def benchmark(args: list[str]) -> None:
    """Measure an experiment: `data` (throughput of the data pipeline), `step` (time and memory of a step), or a run:
    `inference` (PyTorch, compiled, exported and ONNX programs).

    Raises:
        UserError: For a mistake in the arguments or the experiment.
    """
    options, config_arguments = build_parser().parse_known_args(args)
    for name in ("images", "steps"):
        if vars(options).get(name, 1) < 1:
            raise UserError(f"--{name} {vars(options)[name]} must be at least 1")

    if options.subject == "inference":
        if config_arguments:
            raise UserError(f"benchmark inference takes no option {config_arguments[0]}")
        from swin_lightning.benchmark.inference import report_inference

        report_inference(
            options.run, options.seconds, options.images, options.output, options.variants, options.allow_classes
        )
        return

    from swin_lightning.config import experiment_name, load  # imports torch and Lightning
    from swin_lightning.parser_errors import START

    config = load(config_arguments)
    config.experiment = config.experiment or experiment_name(config_arguments)
    if config.data is None:
        raise UserError(f"missing data.class_path; {START}")
    if options.subject == "data":
        from swin_lightning.benchmark.throughput import report_throughput

        report_throughput(config, options.images, options.show)
    else:
        from swin_lightning.benchmark.step import report_steps

        report_steps(config, options.steps)


def build_parser() -> CommandParser:
    """Parser of the own options; all others belong to the experiment."""
    parser = CommandParser("swin-lightning benchmark", description="Measure an experiment on this machine.")
    subjects = parser.add_subparsers(dest="subject", metavar="{data,step,inference}", required=True)
    text = "throughput of the data pipeline against the model's demand"
    data = subjects.add_parser("data", help=text, description=f"Measure the {text}.", allow_abbrev=False)
    data.add_argument("--images", type=int, default=256, metavar="N", help="training images to measure with (256)")
    data.add_argument("--show", metavar="FILE", help="save a sheet of augmented images to FILE and measure nothing")
    text = "time and peak memory of a training step and an evaluation step"
    step = subjects.add_parser("step", help=text, description=f"Measure {text}.", allow_abbrev=False)
    step.add_argument("--steps", type=int, default=10, metavar="N", help="steps to measure, after the warm-up (10)")
    for command in (data, step):
        command.usage = f"{command.prog} -c EXPERIMENT [options below] [options of swin-lightning fit]"
        command.epilog = "-c and all other options are those of `swin-lightning fit`, such as --data.path FOLDER."
    text = "latency, throughput, memory and accuracy of a trained model in PyTorch, torch.export and ONNX Runtime"
    inference = subjects.add_parser("inference", help=text, description=f"Measure {text}.", allow_abbrev=False)
    inference.add_argument("run", metavar="RUN_OR_CKPT", help="run folder (its best checkpoint), or a checkpoint")
    inference.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time per measurement (3)")
    inference.add_argument("--images", type=int, default=500, metavar="N", help="validation images for accuracy (500)")
    inference.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=VARIANTS,
        help="what to measure (default: all); compiling takes minutes",
    )
    inference.add_argument("--output", metavar="FILE", help="save a figure as .png")
    add_allow_option(inference)
    return parser
