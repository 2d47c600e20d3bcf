"""A web server on the loopback address, with a hub of data sets: ranges, lists of folders, and faults on demand.

It answers what `datasets` and `huggingface_hub` ask the Hugging Face hub for when a data set is loaded by its name; it
proves the client's side, what the hub does is the hub's. `Server.requests` tells what was asked.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40


class Server:
    """Files by path, to which a test may write at any time. Use as a context manager."""

    def __init__(self):
        self.files = {}  # path -> content
        self.faults = {}  # path -> what the next requests for it meet: a status, or bytes until the line is cut
        self.told = {}  # path -> content of which the hub tells the checksum, where it is not that of the file
        self.requests = []  # (method, path, range)

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def add(self, folder, prefix):
        """Offer all files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{prefix}/{path.relative_to(folder)}"] = path.read_bytes()

    def downloads(self, ending):
        """Ranges of the requests for the contents of files whose path ends so; None is the whole file."""
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith(ending)]

    def become_the_hub(self, monkeypatch, cache):
        """Let `datasets` and `huggingface_hub` take this server for the hub, online, with a cache of its own."""
        import datasets
        import huggingface_hub

        constants = huggingface_hub.constants
        for module in (constants, datasets.config):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(
            datasets.config, "HUB_DATASETS_URL", self.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
        )
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # another host of the hub's

    # what the hub says of `datasets/owner/name/...`

    def describe(self, path):
        size, digest = len(self.files[path]), self.checksum(path)
        lfs = {"oid": digest, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path.split("/", 4)[4], "size": size, "oid": digest[:40], "lfs": lfs}

    def checksum(self, path):
        return hashlib.sha256(self.told.get(path, self.files[path])).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server_state = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def do_POST(self):
        self.form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.respond()

    def respond(self):
        path = unquote(urlsplit(self.path).path)
        self.server_state.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path)
        resolved = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self.respond_to_api(*api.groups())
        elif resolved:
            self.respond_with_file(f"/datasets/{resolved[1]}/{resolved[3]}", True)
        elif path.endswith("/"):
            names = sorted(
                {file[len(path) :].split("/")[0] for file in self.server_state.files if file.startswith(path)}
            )
            page = "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()
            self.answer(200 if names else 404, page, Content_Type="text/html")
        else:
            self.respond_with_file(path, False)

    def respond_to_api(self, name, question, revision, below):
        state, root = self.server_state, f"/datasets/{name}/"
        paths = sorted(path for path in state.files if path.startswith(root))
        if not paths:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if question == "tree":
            folder = root + (below or "").strip("/")
            found = [state.describe(path) for path in paths if path.startswith(folder)]
            if not found:
                return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        elif question == "paths-info":
            found = [state.describe(path) for path in paths if path[len(root) :] in self.form.get("paths", [])]
        else:
            siblings = [{"rfilename": path[len(root) :]} for path in paths]
            found = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
        return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def respond_with_file(self, path, hub):
        state = self.server_state
        if path not in state.files:
            return self.answer(404, X_Error_Code="EntryNotFound") if hub else self.answer(404)
        content, headers, status, start, end = state.files[path], {"Accept_Ranges": "bytes"}, 200, 0, None
        if hub:
            headers |= {"X_Repo_Commit": COMMIT, "ETag": f'"{state.checksum(path)}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end, status = int(asked[1]), int(asked[2] or len(content) - 1) + 1, 206
            headers["Content_Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
        content = content[start:end]
        faults = state.faults.get(path, [])
        fault = faults.pop(0) if faults and self.command == "GET" else None
        if isinstance(fault, str):
            return self.answer(int(fault))
        if fault is None:
            return self.answer(status, content, **headers)
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content[:fault])
        self.wfile.flush()
        self.close_connection = True
        return None
