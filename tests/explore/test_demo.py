"""The demo page in Chromium: upload, classes, click, attention, errors; no request leaves this machine."""

import shutil
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from swin_lightning.errors import UserError
from swin_lightning.explore.demo import build_page, demo, launch
from tests.support.checkpoint import write_checkpoint


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "b", "c"], "demo compares two checkpoints, not 3"),
        (["a", "--port", "70000"], "--port 70000 must be from 0 to 65535"),
        (["a", "--max-upload", "0"], "--max-upload 0 must be from 1 to 1000"),
    ],
)
def test_invalid_arguments(args, message):
    with pytest.raises(UserError, match=message):
        demo(args)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of gradio and its dependencies
def test_page_in_chromium(tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no Chromium")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    for name in ("a", "b"):
        write_checkpoint(tmp_path / f"{name}.ckpt", depths=[2, 2], num_heads=[2, 4], window_size=3)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(60, 80, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    for name in ("text.txt", "no image.png"):
        (tmp_path / name).write_text("This is text.")
    page = build_page(["a.ckpt", "b.ckpt"])
    address = launch(page, "127.0.0.1", 0, 1, block=False)
    try:
        with playwright.sync_playwright() as api:
            browser = api.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            tab = browser.new_page()
            requests = []
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(address)

            def upload(name):
                tab.wait_for_selector("#upload input[type=file]", state="attached", timeout=60000)
                tab.set_input_files("#upload input[type=file]", tmp_path / name)

            upload("photo.png")
            for i in (0, 1):
                tab.wait_for_selector(f"#cam-{i} img", timeout=60000)
                text = tab.inner_text(f"#classes-{i}")
                assert all(name in text for name in ("cat", "dog", "eel")) and "%" in text
            tab.locator("#crop-1 img").click(position={"x": 20, "y": 30})
            for i in (0, 1):
                tab.wait_for_selector(f"#attention-{i} img", timeout=60000)
            tab.screenshot(path="page.png", full_page=True)
            for name, message in (("text.txt", "Invalid file type"), ("no image.png", "no image.png")):
                tab.reload()
                upload(name)
                tab.wait_for_selector(f".toast-body:has-text('{message}')", timeout=60000)
            browser.close()
        hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
        assert hosts == {"127.0.0.1"} and len(requests) > 10
    finally:
        page.close()
