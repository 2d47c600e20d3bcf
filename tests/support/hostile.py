"""Hostile files: each would run code, take memory or time, or be loaded in part, if it were trusted.

A file that runs code creates the file `ran` in the working directory. `CHECKPOINTS`, `WEIGHTS`, `IMAGES`, `TARS` and
`RUNS` map a name to a function that writes the file to a path (of the suffix in the name, if there is one).
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

from tests.support.checkpoints import backbone, state_dict, write_checkpoint
from tests.support.images import encode

TOUCH = "open('ran', 'w').close()"


def named(**changes):
    return lambda path: write_checkpoint(path, **changes)


def with_state(**entries):
    """A checkpoint with other tensors; a function makes one when the file is written."""
    made = {key.replace("__", "."): value for key, value in entries.items()}
    return lambda path: write_checkpoint(path, {k: value() if callable(value) else value for k, value in made.items()})


def call(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, (TOUCH,))


def saved(content):
    return lambda path: torch.save(content() if callable(content) else content, path)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """A checkpoint whose members are changed: `change(name, content)`."""
    write_checkpoint(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def memo_bomb(path):
    """15 bytes for which pickle in C takes gigabytes."""
    bomb = b"\x80\x02}r" + struct.pack("<I", 900_000_000) + b"."
    rewritten(path, lambda name, content: bomb if name.endswith("data.pkl") else content)


def script_bomb(path):
    memo_bomb(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))


def nested_pickle(path, depth=100_000):
    """A dict with lists in lists, which pickle writes with recursion and reads without."""
    content = b"\x80\x02}X\x01\x00\x00\x00x" + b"]" * depth + b"a" * (depth - 1) + b"s."
    rewritten(path, lambda name, old: content if name.endswith("data.pkl") else old)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times=40):
    value = "x"
    for _ in range(times):
        value = [value, value]
    return value


def wrong_checksum(path):
    write_checkpoint(path)
    content = bytearray(path.read_bytes())
    at = content.find(state_dict()["head.weight"].numpy().tobytes())
    content[at : at + 4] = b"\0\0\xff\x7f"
    path.write_bytes(content)


CHECKPOINTS = {
    "code in a pickle": lambda path: write_checkpoint(path, lr=Code()),
    "class path of a function": named(backbone=call("builtins.exec", object=TOUCH)),
    "class path of os.system": named(backbone=call("os.system", command="touch ran")),
    "class path through our module": named(backbone=call("swin_lightning.cli.os.system", command="touch ran")),
    "class path of Popen": named(loss=call("subprocess.Popen", args=["touch", "ran"])),
    "partial": named(loss=call("functools.partial", func="os.system")),
    "torch.hub": named(backbone=call("torch.hub.load", repo_or_dir=".", model="x", source="local")),
    "torch.load": named(loss=call("torch.load", f="evil.pth", weights_only=False)),
    "compiled source": named(loss=call("torch.jit.CompilationUnit", lang="def f(): pass")),
    "module of the working directory": named(_class_path="evil.Module"),
    "instantiator": named(_instantiator="os.system", _class_path="evil.Module"),
    "metric of the working directory": named(metrics={"m": {"class_path": "evil.Module"}}),
    "string for a callable": named(loss="evil.function"),
    "string for an optimizer": named(optimizer="evil.function"),
    "string for a schedule": named(lr_schedule="evil.function"),
    "YAML in a string": named(backbone="{class_path: evil.Module}"),
    "YAML file": named(backbone="evil.yaml"),
    "download": named(weights="https://example.org/evil.pth"),
    "metric that downloads": named(metrics={"m": call("torchmetrics.text.BERTScore", model_name_or_path="evil/model")}),
    "callable of a loss": named(loss=call("torch.nn.TripletMarginWithDistanceLoss", distance_function="os.system")),
    "huge width": named(backbone=backbone(embed_dim=2**20)),
    "huge depth": named(backbone=backbone(depths=[10**9, 1])),
    "huge position embedding": named(backbone=backbone(ape=True, img_size=10**6)),
    "huge window": named(backbone=backbone(window_size=10**5)),
    "a billion classes": named(num_classes=10**9, class_names=None),
    "fewer names": named(class_names=["a"]),
    "other classes": named(num_classes=2, class_names=["a", "b"]),
    "names that are no text": named(class_names=[["a"], 1, None]),
    "values without end": lambda path: write_checkpoint(path, metrics=doubled()),
    "nested arguments": lambda path: write_checkpoint(path, metrics=nested(60)),
    "NaN": with_state(head__weight=torch.full((3, 16), float("nan"))),
    "int8": with_state(head__weight=torch.ones(3, 16, dtype=torch.int8)),
    "complex": with_state(head__weight=torch.ones(3, 16, dtype=torch.complex64)),
    "sparse": with_state(head__weight=lambda: torch.ones(3, 16).to_sparse()),
    "huge sparse": with_state(head__weight=lambda: torch.zeros(3, 16).to_sparse().sparse_resize_((10**9, 10**9), 2, 0)),
    "meta": with_state(head__weight=torch.empty(3, 16, device="meta")),
    "repeated elements": with_state(head__weight=torch.zeros(1, 1).expand(10**6, 10**6)),
    "wrong shape": with_state(head__weight=torch.zeros(16, 3)),
    "missing entry": with_state(head__weight=None),
    "further entry": with_state(head__scale=torch.zeros(3)),
    "no state dict": saved({"state_dict": [1], "global_step": 1}),
    "arguments that are a list": saved(lambda: {"state_dict": state_dict(), "global_step": 1, "hyper_parameters": [1]}),
    "nested lists": nested_pickle,
    "memo of pickle": memo_bomb,
    "memo of TorchScript": script_bomb,
    "compressed zeros": zip_bomb,
    "wrong checksum": wrong_checksum,
    "half a file": lambda path: path.write_bytes(write_checkpoint(path).read_bytes()[:2000]),
}


# weights


def weights(**entries):
    changes = {key.replace("__", "."): value for key, value in entries.items()}
    return lambda path: torch.save(
        {**state_dict(), **{key: value() if callable(value) else value for key, value in changes.items()}}, path
    )


def safetensors(header, data=b"", length=None):
    text = json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def index(weight_map):
    return lambda path: path.write_text(json.dumps({"weight_map": weight_map}))


BIG_TENSOR = {"head.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
WEIGHTS = {
    "NaN.pth": weights(head__weight=torch.full((3, 16), float("nan"))),
    "int8.pth": weights(head__weight=torch.ones(3, 16, dtype=torch.int8)),
    "bool.pth": weights(head__weight=torch.ones(3, 16) > 0),
    "complex.pth": weights(head__weight=torch.ones(3, 16, dtype=torch.complex64)),
    "sparse.pth": weights(head__weight=lambda: torch.ones(3, 16).to_sparse()),
    "repeated.pth": weights(head__weight=torch.zeros(1, 1).expand(10**6, 10**6)),
    "code.pth": saved({"model": Code()}),
    "old code.pth": lambda path: path.write_bytes(pickle.dumps({"model": Code()})),
    "nested.pth": nested_pickle,
    "script.pt": script_bomb,
    "size.safetensors": safetensors(BIG_TENSOR),
    "header.safetensors": safetensors({}, length=2**62),
    "outside.index.json": index({"head.weight": "../other.safetensors"}),
    "nested.index.json": lambda path: path.write_text("[" * 100_000),
}


# images


def jpeg():
    return encode(Image.new("RGB", (32, 32), (200, 30, 30)), "JPEG")


def resized_jpeg(path, before=b""):
    content = jpeg()
    at = content.find(b"\xff\xc0")
    frame = content[at : at + 5] + struct.pack(">HH", 32000, 32000) + content[at + 9 : at + 19]
    path.write_bytes(content[:at] + before + frame + content[at + 19 :])


def second_header(path, fill=b""):
    content = jpeg()
    at = content.find(b"\xff\xc0")
    frame = content[at : at + 5] + struct.pack(">HH", 32000, 32000) + content[at + 9 : at + 19]
    path.write_bytes(content[:at] + fill + frame + content[at:])


def many_scans(path):
    content = encode(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    scan = content.find(b"\xff\xda")
    end = content.find(b"\xff", scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big"))
    path.write_bytes(content[:end] + content[scan:end] * 3000 + content[end:])


def png(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + header + data + pixels + chunk(b"IEND", b"")


def tiff(path, tile=(40000, 40000), samples=1):
    """A TIFF of one tile, larger than the image."""
    tags = {256: 64, 257: 64, 258: 8, 259: 5, 262: 1, 277: samples, 322: tile[0], 323: tile[1], 324: 8, 325: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + entries + bytes(4))


def numpy_object():
    file = io.BytesIO()
    np.save(file, np.array([Code()]), allow_pickle=True)
    return file.getvalue()


IMAGES = {
    "eps.jpg": lambda path: path.write_bytes(encode(Image.new("RGB", (8, 8)), "EPS")),
    "pdf.jpg": lambda path: path.write_bytes(encode(Image.new("RGB", (8, 8)), "PDF")),
    "size.jpg": resized_jpeg,
    "two headers.jpg": second_header,
    "fill bytes.jpg": lambda path: second_header(path, b"\xff"),
    "scans.jpg": many_scans,
    "size.png": lambda path: path.write_bytes(png(13000, 13000)),
    "beyond pillow.png": lambda path: path.write_bytes(png(10**5, 10**5)),
    "tile.tif": tiff,
    "size.gif": lambda path: path.write_bytes(b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,"),
    "size.bmp": lambda path: path.write_bytes(
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "size.ppm": lambda path: path.write_bytes(b"P6 60000 60000 255\n" + bytes(100)),
    "object.png": lambda path: path.write_bytes(pickle.dumps(Code())),
    "array.png": lambda path: path.write_bytes(numpy_object()),
}


# archives


def tar(members):
    """A tar file of (name, content or target of a link)."""

    def write(path):
        with tarfile.open(path, "w") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                if isinstance(content, str):
                    info.type, info.linkname = tarfile.SYMTYPE, content
                else:
                    info.size = len(content)
                archive.addfile(info, None if isinstance(content, str) else io.BytesIO(content))

    return write


PNG = encode(Image.new("RGB", (8, 8)), "PNG")
TARS = {
    "a billion classes": tar([("a.png", PNG), ("a.cls", b"1000000000")]),
    "negative class": tar([("a.png", PNG), ("a.cls", b"-1")]),
    "endless class": tar([("a.png", PNG), ("a.cls", b"9" * 10**6)]),
    "no image": tar([("a.cls", b"0")]),
    "link": tar([("cat/a.png", "/etc/passwd")]),
    "half a file": lambda path: (tar([("cat/a.png", PNG * 100)])(path), path.write_bytes(path.read_bytes()[:2000])),
}


# files of a run: path in its folder -> content

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MODEL = {"class_path": "swin_lightning.SwinClassifier", "init_args": {}}
RUNS = {
    "class of the model": ("config.yaml", json.dumps({"model": {"class_path": "evil.Module"}})),
    "class of the data": ("config.yaml", json.dumps({"model": MODEL, "data": {"class_path": "evil.Module"}})),
    "aliases": ("config.yaml", ALIASES + "model: *a11\n"),
    "tag": ("config.yaml", f"model: !!python/object/apply:builtins.exec [{TOUCH!r}]"),
    "nested": ("config.yaml", "[" * 3000),
    "binary": ("config.yaml", "\0\1\2\3"),
    "list": ("config.yaml", "[1, 2]"),
}
