"""A web server on the loopback interface that can stand in for the Hugging Face Hub: ranges, folder lists, faults.

It answers the requests of `datasets` and `huggingface_hub` when a data set is loaded by its name. It tests the client;
the behaviour of the real Hub is not covered. `Server.requests` records the requests.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40


class Server:
    """Serves files by path; a test may change them at any time. Use as a context manager."""

    def __init__(self):
        self.files = {}  # path -> content
        self.faults = {}  # path -> faults of its next GET requests: ("status", code) or ("disconnect", bytes sent)
        self.advertised = {}  # path -> content whose checksum the Hub reports, if it is not that of the file
        self.requests = []  # (method, path, range)
        self.commits = {}  # name of a model repository -> path -> content of the files that were uploaded

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.running = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.running:
            self.http.shutdown()
            self.http.server_close()
        self.running = False

    def add(self, folder, prefix):
        """Serve all files in a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{prefix}/{path.relative_to(folder)}"] = path.read_bytes()

    def downloads(self, suffix):
        """Ranges of all GET requests for files whose path ends with `suffix`; None is the whole file."""
        return [requested for method, path, requested in self.requests if method == "GET" and path.endswith(suffix)]

    def replace_hub(self, monkeypatch, cache):
        """Make `datasets` and `huggingface_hub` use this server as the Hub, online, with an empty cache."""
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
        monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # served by another host of the Hub

    # metadata of `/datasets/<owner>/<name>/<path>`

    def describe(self, path):
        size, digest = len(self.files[path]), self.checksum(path)
        lfs = {"oid": digest, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path.split("/", 4)[4], "size": size, "oid": digest[:40], "lfs": lfs}

    def checksum(self, path):
        return hashlib.sha256(self.advertised.get(path, self.files[path])).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server_state = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.begin(status, content, headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def do_POST(self):
        self.body = self.read_body()
        self.form = parse_qs(self.body.decode(errors="replace"))
        self.respond()

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def respond(self):
        path = unquote(urlsplit(self.path).path)
        self.server_state.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path)
        resolved = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        model = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        upload = re.fullmatch(r"/api/(?:repos|models|validate-yaml)(?:/([^/]+/[^/]+))?(?:/(\w+)(?:/\w+)?)?", path)
        if api:
            self.respond_to_api(*api.groups())
        elif resolved:
            self.respond_with_file(f"/datasets/{resolved[1]}/{resolved[3]}", hub=True)
        elif model:
            self.respond_with_file(f"/{model[1]}/{model[3]}", hub=True)
        elif upload:
            self.respond_to_upload(*upload.groups())
        elif path.endswith("/"):
            files = self.server_state.files
            names = sorted({file[len(path) :].split("/")[0] for file in files if file.startswith(path)})
            page = "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()
            self.answer(200 if names else 404, page, Content_Type="text/html")
        else:
            self.respond_with_file(path, hub=False)

    def respond_to_api(self, name, endpoint, revision, subpath):
        state, root = self.server_state, f"/datasets/{name}/"
        paths = sorted(path for path in state.files if path.startswith(root))
        if not paths:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if endpoint == "tree":
            folder = root + (subpath or "").strip("/")
            found = [state.describe(path) for path in paths if path.startswith(folder)]
            if not found:
                return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        elif endpoint == "paths-info":
            found = [state.describe(path) for path in paths if path[len(root) :] in self.form.get("paths", [])]
        else:
            siblings = [{"rfilename": path[len(root) :]} for path in paths]
            found = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
        return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def respond_to_upload(self, name, endpoint):
        """Create a model repository, or commit files to it; all of them come within the commit."""
        state, lines = self.server_state, [json.loads(line) for line in self.body.splitlines() if line[:1] == b"{"]
        if endpoint == "create":
            created = lines[0]
            name = "/".join(filter(None, (created.get("organization"), created["name"])))
            answer = {"url": f"{state.url}/{name}", "name": name, "id": name}
        elif endpoint == "preupload":
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]
                ]
            }
        elif endpoint == "commit":
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            state.commits.setdefault(name, {}).update(files)
            state.files |= {f"/{name}/{path}": content for path, content in files.items()}
            answer = {"commitUrl": f"{state.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        else:
            answer = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": []}
        return self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def respond_with_file(self, path, hub):
        state = self.server_state
        if path not in state.files:
            return self.answer(404, X_Error_Code="EntryNotFound") if hub else self.answer(404)
        content, headers, status, start, end = state.files[path], {"Accept_Ranges": "bytes"}, 200, 0, None
        if hub:
            headers |= {"X_Repo_Commit": COMMIT, "ETag": f'"{state.checksum(path)}"'}
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if requested:
            start, end, status = int(requested[1]), int(requested[2] or len(content) - 1) + 1, 206
            headers["Content_Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
        content = content[start:end]
        faults = state.faults.get(path, [])
        fault, value = faults.pop(0) if faults and self.command == "GET" else (None, 0)
        if fault is None:
            return self.answer(status, content, **headers)
        if fault == "status":
            return self.answer(value)
        self.begin(status, content, headers)
        self.wfile.write(content[:value])
        self.wfile.flush()
        self.close_connection = True
        return None
