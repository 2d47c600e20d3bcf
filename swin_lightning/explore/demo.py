"""`swin-lightning demo RUN_OR_CKPT`: a local page to classify images and to see what the network looks at."""

import importlib
import os
from typing import Any

from swin_lightning.errors import CommandParser, UserError, add_allow_option, summarize

# the browser loads nothing from other machines, whatever the page contains
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
HINT = "Click a place in the crop to see what the windows of every stage attend to from there."


def demo(args: list[str]) -> None:
    """Open a page on this machine: drop an image, see the classes with their probabilities, click a place to see the
    attention of every stage from there, and Grad-CAM. A second checkpoint is shown beside the first one.

    The page is served to this machine only (--host 127.0.0.1), and neither it nor the browser requests anything else.
    """
    parser = CommandParser("swin-lightning demo", description=demo.__doc__)
    text = "run folder, checkpoint or exported program; a second one is compared with it"
    parser.add_argument("checkpoints", metavar="RUN_OR_CKPT", nargs="+", help=text)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port (7860)")
    parser.add_argument("--max-upload", type=int, default=20, metavar="MB", help="largest image file in MB (20)")
    add_allow_option(parser)
    options = parser.parse_args(args)
    if len(options.checkpoints) > 2:
        raise UserError(f"demo compares two checkpoints, not {len(options.checkpoints)}")
    for name, low, high in (("port", 0, 65535), ("max_upload", 1, 1000)):
        if not low <= getattr(options, name) <= high:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(options, name)} must be from {low} to {high}")
    launch(build_page(options.checkpoints, options.allow_classes), options.host, options.port, options.max_upload)


def build_page(checkpoints: list[str], allow: Any = ()) -> Any:
    """The page as `gradio.Blocks`.

    Raises:
        UserError: If gradio is not installed, or a checkpoint cannot be loaded.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        gradio: Any = importlib.import_module("gradio")
    except ImportError as error:
        raise UserError("gradio is needed for the demo: pip install 'swin_lightning[demo]'") from error
    import torch

    from swin_lightning.explore.demo_views import attention_picture, grad_cam_picture, network_view
    from swin_lightning.inference import Predictor, ProgramPredictor
    from swin_lightning.program_files import is_program

    predictors = [
        Predictor(path) if is_program(path) else Predictor(path, "cpu", "32-true", allow=allow) for path in checkpoints
    ]
    with_views = [not isinstance(predictor, ProgramPredictor) for predictor in predictors]

    def read(path: str | None, predictor: Predictor) -> torch.Tensor:
        if path is None:
            raise gradio.Error("Upload an image first")
        try:
            return predictor.preprocess(path, os.path.basename(path))
        except UserError as error:
            raise gradio.Error(summarize(error)) from error

    def classify(path: str | None) -> list[Any]:
        results: list[Any] = [None] * len(predictors)  # the attention of the image before
        if path is None:
            return results + [None] * (3 * len(predictors))
        for predictor, views in zip(predictors, with_views, strict=True):
            pixels = read(path, predictor)
            (prediction,) = predictor(path)
            cam = grad_cam_picture(predictor, pixels) if views else None
            results += [dict(prediction.top(5)), network_view(pixels), cam]
        return results

    def attend(path: str | None, event: gradio.SelectData) -> Any:
        pictures = []
        for predictor, views in zip(predictors, with_views, strict=True):
            pixels = read(path, predictor)
            column, row = event.index
            side = network_view(pixels).shape[0]
            place = (min(row / side, 1.0), min(column / side, 1.0))
            pictures.append(attention_picture(predictor, pixels, place) if views else None)
        return pictures if len(pictures) > 1 else pictures[0]

    outputs, crops, attention = [], [], []
    shown = {"interactive": False, "buttons": []}  # gradio's share button would upload the picture
    with gradio.Blocks(title="swin_lightning", analytics_enabled=False) as page:
        sources = ["upload", "clipboard"]
        upload = gradio.Image(type="filepath", sources=sources, label="Image", elem_id="upload", height=300, buttons=[])
        # the file itself, which `Predictor` opens; gradio's own reader ends with an unnamed error for other files
        upload.preprocess = lambda image: image and image.path
        with gradio.Row():
            for i, (path, views) in enumerate(zip(checkpoints, with_views, strict=True)):
                with gradio.Column():
                    gradio.Markdown(f"`{path}`")
                    label = gradio.Label(label="Classes", num_top_classes=5, elem_id=f"classes-{i}")
                    with gradio.Row():
                        crop = gradio.Image(label="Crop", elem_id=f"crop-{i}", **shown)
                        cam = gradio.Image(label="Grad-CAM", elem_id=f"cam-{i}", visible=views, **shown)
                    gradio.Markdown(HINT, visible=views)
                    attention += [gradio.Image(show_label=False, elem_id=f"attention-{i}", visible=views, **shown)]
                    outputs += [label, crop, cam]
                    crops += [crop]
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "network"}
        upload.change(classify, upload, attention + outputs, api_visibility="private", **one_at_a_time)
        for crop in crops:
            crop.select(attend, upload, attention, api_visibility="private", **one_at_a_time)
    return page


def launch(page: Any, host: str, port: int, max_upload: int, block: bool = True) -> str:
    """Serve a page until Ctrl-C; returns its address.

    Raises:
        UserError: If the port is in use.
    """
    gradio: Any = importlib.import_module("gradio")
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def add_policy(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            quiet=True,
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=f"{max_upload}mb",
            footer_links=[],
            theme=theme,
            app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=add_policy)]},
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--port {port}: {summarize(error)}") from error
    print(f"demo: {address} (Ctrl-C to stop)", flush=True)
    if block:
        page.block_thread()
    return str(address)
