"""`swin-lightning export`: weights in the format of another project, or a program with its preprocessing.

Every file is written beside its place, run once and compared with the checkpoint before it replaces an earlier one.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from swin_lightning.errors import CommandParser, UserError, add_allow_option
from swin_lightning.models.weight_formats import EXPORT_FORMATS

if TYPE_CHECKING:
    import argparse

PROGRAMS = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt"}  # format -> suffix
PROGRAM_OPTIONS = ("size", "with_preprocessing")
ONNX_OPTIONS = ("int8", "fp16", "calibration")


def export(args: list[str]) -> None:
    """Export the model of a run: weights in the format of another project, or a program that runs without this package.

    If the run kept averaged (EMA) weights, these are exported. A program (onnx, pt2, torchscript) takes normalised
    float32 images B, 3, H, W and returns logits; with --with-preprocessing it takes one uint8 RGB image H, W, 3 of any
    size and returns the probability of each class. It carries class names, mean, standard deviation, image size and
    crop as metadata. hub is a folder with a model card that this package, timm and transformers load. The result is run
    once and compared with the checkpoint before it is called written.
    """
    options = build_parser().parse_args(args)
    _check_options(options)

    if options.format == "hub":
        from swin_lightning.export.hub_folder import export_hub

        export_hub(options.checkpoint, Path(options.output), options.push, options.allow_classes)
        return

    from swin_lightning.export.conversion import export_program, export_weights_file  # imports torch and Lightning

    if options.format in EXPORT_FORMATS:
        export_weights_file(options.checkpoint, Path(options.output), options.format, options.allow_classes)
    else:
        export_program(
            options.checkpoint,
            Path(options.output),
            size=options.size,
            with_preprocessing=options.with_preprocessing,
            precision="int8" if options.int8 else "fp16" if options.fp16 else "fp32",
            calibration=options.calibration,
            allow=options.allow_classes,
        )


def build_parser() -> CommandParser:
    """Parser of the command."""
    parser = CommandParser("swin-lightning export", description=export.__doc__)
    parser.add_argument("checkpoint", metavar="RUN_OR_CKPT", help="run folder (its best checkpoint), or a checkpoint")
    formats = [*EXPORT_FORMATS, *PROGRAMS, "hub"]
    parser.add_argument(
        "--format",
        choices=formats,
        default="swin_lightning",
        help="weight format, or kind of program",
    )
    suffixes = ".safetensors or .pth file; " + ", ".join(f"{suffix} for {name}" for name, suffix in PROGRAMS.items())
    suffixes += "; new folder for hub"
    parser.add_argument("--output", required=True, metavar="FILE", help=suffixes)
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="S", help="image size of a program (default: that of the checkpoint)"
    )
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="the program resizes, crops and normalises one uint8 image"
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--int8", action="store_true", help="quantize an ONNX program with calibration images")
    precision.add_argument("--fp16", action="store_true", help="half-precision weights of an ONNX program")
    parser.add_argument("--calibration", metavar="PATH", help="images for --int8 (default: training images of the run)")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder of --format hub to the Hugging Face Hub"
    )
    add_allow_option(parser)
    return parser


def _check_options(options: "argparse.Namespace") -> None:
    def refuse(name: str, allowed: str) -> None:
        value = getattr(options, name)
        text = "" if value is True else " " + " ".join(map(str, value if isinstance(value, list) else [value]))
        option = "--" + name.replace("_", "-")
        raise UserError(f"{option}{text} is only valid with {allowed}, not {options.format}")

    for name in PROGRAM_OPTIONS:
        if getattr(options, name) and options.format not in PROGRAMS:
            refuse(name, f"--format {', '.join(PROGRAMS)}")
    for name in ONNX_OPTIONS:
        if getattr(options, name) and options.format != "onnx":
            refuse(name, "--format onnx")
    if options.push and options.format != "hub":
        refuse("push", "--format hub")
    if options.calibration and not options.int8:
        raise UserError(f"--calibration {options.calibration} is only valid with --int8")
    suffix = PROGRAMS.get(options.format)
    if suffix and Path(options.output).suffix != suffix:
        raise UserError(f"output {options.output!r} must end with {suffix} for --format {options.format}")
