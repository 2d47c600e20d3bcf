"""A fake W&B server on the loopback address, for tests with the real wandb client and agent.

It implements the requests of a client that creates a sweep, runs agents and runs, and reads the sweep back. Parameters
are proposed by the `sweeps` library. `Server.unknown_operations` lists requests that are not implemented.
"""

import contextlib
import json
import re
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

from swin_lightning.sweep.sweep_file import import_sweeps

PROJECT = {"id": "1", "name": "swin_lightning", "entity": {"id": "e", "name": "tester"}}


class Server:
    """State of the server. Use as a context manager; `environment()` points a wandb client to it."""

    def __init__(self):
        self.sweep = None  # configuration of the only sweep
        self.runs = {}  # run id -> config, summary, history, state, exit code
        self.queue = []  # commands for the next heartbeats; then new parameters are proposed
        self.stopped = set()  # runs stopped by the sweep
        self.stop_after = None  # stop a run after this many rows of history, as Hyperband would
        self.preempting = set()
        self.artifacts = []
        self.unknown_operations = []
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home):
        return {
            "WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online", "HOME": str(home),
            "WANDB_ENTITY": "tester", "WANDB_PROJECT": "swin_lightning", "WANDB_SILENT": "false",
            "WANDB_ERROR_REPORTING": "false",
        }  # fmt: skip

    def add_finished_run(self, name, parameters, summary):
        args = {key: {"value": value} for key, value in parameters.items()}
        self.runs[name] = {"history": [], "summary": summary, "config": args, "state": "finished", "args": args}

    # GraphQL operations by name; `v` holds the variables

    def Viewer(self, v):
        return {"viewer": {"id": "u", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}}

    GetViewer = GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def UpsertSweep(self, v):
        self.sweep = yaml.safe_load(v["config"])
        return {"upsertSweep": {"sweep": {"name": "sweep001", "project": PROJECT}, "configValidationWarnings": []}}

    def SweepWithRuns(self, v):
        runs = {"edges": [{"node": self._node(run)} for run in self.runs]}
        return {"project": {"sweep": {**self._sweep(), "runs": runs}}}

    def GetSweep(self, v):
        return {"project": {"sweep": self._sweep() if v["name"] == "sweep001" else None}}

    GetSweepLegacy = GetSweep

    def GetSweepState(self, v):
        return {"project": {"sweep": {"state": "RUNNING"}}}

    def CreateAgent(self, v):
        return {"createAgent": {"agent": {"id": "agent001"}}}

    def Heartbeat(self, v):
        running = json.loads(v["runState"])
        commands = [{"type": "stop", "run_id": run} for run in running if run in self.stopped]
        if not running:
            commands = [self.queue.pop(0)] if self.queue else self._propose()
        return {"agentHeartbeat": {"agent": {"id": "agent001"}, "commands": json.dumps(commands)}}

    def UpsertBucket(self, v):
        run = self.runs.setdefault(v["name"], {"history": [], "summary": {}, "config": {}, "state": "running"})
        run["config"].update(json.loads(v.get("config") or "{}"))
        run.update({key: v[key] for key in ("sweep", "groupName", "displayName") if v.get(key)})
        bucket = {"id": v["name"], "name": v["name"], "displayName": v.get("displayName"), "sweepName": v.get("sweep"),
                  "config": "{}", "project": PROJECT, "historyLineCount": len(run["history"])}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def RunResumeStatus(self, v):
        run, bucket = self.runs.get(v["name"]), None
        if run and run["history"]:
            bucket = {
                "id": v["name"], "name": v["name"], "summaryMetrics": json.dumps(run["summary"]), "displayName": None,
                "logLineCount": 0, "historyLineCount": len(run["history"]), "eventsLineCount": 0, "eventsTail": "[]",
                "historyTail": json.dumps([json.dumps(run["history"][-1])]), "config": json.dumps(run["config"]),
                "tags": [], "wandbConfig": json.dumps({"t": 1}),
            }  # fmt: skip
        return {"model": {**PROJECT, "bucket": bucket}}

    def RunStoppedStatus(self, v):
        run = v["runId"]
        return {"project": {"run": {"stopped": run in self.stopped}}}

    def CreateRunFiles(self, v):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in v["files"]]
        return {"createRunFiles": {"runID": v.get("run"), "uploadHeaders": [], "files": files}}

    def Runs(self, v):
        edges = [{"node": self._node(run), "cursor": run} for run in self.runs]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {**PROJECT, "internalId": "1", "runCount": len(edges), "readOnly": False,
                            "runs": {"edges": edges, "pageInfo": page}}}  # fmt: skip

    def Run(self, v):
        return {"project": {"run": self._node(v["name"])}}

    # history of a run, which the client reads to its last step

    def RunHistoryKeys(self, v):
        rows = self.runs[v["name"]]["history"]
        return {"project": {"run": {"historyKeys": {"lastStep": len(rows) - 1, "sets": [], "keys": {}}}}}

    def RunParquetHistory(self, v):
        return {"project": {"run": {"parquetHistory": {"parquetUrls": []}}}}

    def HistoryPage(self, v):
        rows = self.runs[v.get("run") or v["runName"]]["history"]
        return {"project": {"run": {"history": [json.dumps(row) for row in rows if v["minStep"] <= row["_step"]]}}}

    # artifacts of a run: tables and requirements

    def CreateArtifact(self, v):
        self.artifacts.append(v.get("input", v))
        artifact = {
            "id": f"a{len(self.artifacts)}",
            "state": "PENDING",
            "artifactSequence": {"id": "s", "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def CreateArtifactManifest(self, v):
        file = {"id": "f", "name": "manifest", "displayName": "manifest", "uploadUrl": f"{self.url}/upload",
                "uploadHeaders": [], "artifact": {"id": "a"}}  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    UpdateArtifactManifest = CreateArtifactManifest

    def CreateArtifactFiles(self, v):
        specs = (v.get("input") or v).get("artifactFiles") or v.get("artifactFiles") or []
        edges = [
            {"node": {"id": "f", "name": s["name"], "displayName": s["name"], "uploadUrl": f"{self.url}/upload",
                      "uploadHeaders": [], "uploadMultipartUrls": None, "storagePath": None, "artifact": {"id": "a"}}}
            for s in specs
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, v):
        return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}

    def ArtifactType(self, v):
        return {"project": {"artifact": {"artifactType": {"name": "run_table"}}}}

    def OrganizationCoreWeaveOrganizationID(self, v):
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def UseArtifact(self, v):
        return {"useArtifact": {"artifact": {"id": "a", "digest": "d"}}}

    # helpers

    def _sweep(self):
        text = yaml.safe_dump(self.sweep)
        return {
            "id": "sweep001", "name": "sweep001", "displayName": self.sweep.get("name"), "method": self.sweep["method"],
            "state": "RUNNING", "description": None, "bestLoss": None, "config": text, "heartbeatAt": None,
            "createdAt": "2026-01-01T00:00:00", "updatedAt": None, "runCount": len(self.runs), "runCountExpected": None,
            "earlyStopJobRunning": False, "user": None, "controller": None, "scheduler": None,
        }  # fmt: skip

    def _node(self, name):
        run = self.runs[name]
        return {
            "id": name, "name": name, "displayName": name, "projectId": "1", "tags": [], "sweepName": "sweep001",
            "state": run["state"], "group": None, "jobType": None, "commit": None, "readOnly": False,
            "createdAt": "2026-01-01T00:00:0" + str(list(self.runs).index(name)), "heartbeatAt": "2026-01-01T00:00:00",
            "description": None, "notes": None, "user": {"name": "tester", "username": "tester"}, "historyKeys": None,
            "historyLineCount": len(run["history"]), "systemMetrics": "{}", "config": json.dumps(run["config"]),
            "summaryMetrics": json.dumps(run["summary"]), "projectName": "swin_lightning", "entityName": "tester",
        }  # fmt: skip

    def _propose(self):
        if self.sweep.get("run_cap", 10**9) <= len(self.runs):
            return [{"type": "exit"}]
        sweeps = import_sweeps()
        keys = {"method", "metric", "parameters"}
        config = {key: value for key, value in self.sweep.items() if key in keys}
        before = [
            sweeps.SweepRun(name=name, state="finished", summaryMetrics=run["summary"], config=run["args"])
            for name, run in self.runs.items()
            if "args" in run
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence warnings of the Gaussian process
            proposed = sweeps.next_run(config, before)
        if proposed is None:
            return [{"type": "exit"}]
        args = {
            name: {"value": getattr(e["value"], "item", lambda e=e: e["value"])()}
            for name, e in proposed.config.items()
        }
        name = f"run{len(self.runs):05d}"
        self.runs[name] = {"history": [], "summary": {}, "config": {}, "state": "running", "args": args}
        return [{"type": "run", "run_id": name, "program": self.sweep.get("program"), "args": args}]

    def _stream(self, name, body):
        run = self.runs[name]
        files = body.get("files") or {}
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            run["history"].append(json.loads(line))
        if self.stop_after is not None and len(run["history"]) >= self.stop_after:
            self.stopped.add(name)
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run["summary"] = json.loads(line)
        if body.get("preempting"):
            self.preempting.add(name)
        if body.get("complete") is not None or body.get("exitcode") is not None:
            run["exitcode"] = body.get("exitcode")
            run["state"] = "finished" if not body.get("exitcode") else "failed"


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client has exited
            super().handle()

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/graphql"):
            body = json.loads(raw)
            name = body.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", body["query"])[1]
            with self.state.lock:
                answer = getattr(self.state, name, None)
                if answer is None:
                    self.state.unknown_operations.append((name, body.get("variables")))
                    return self._send({"errors": [{"message": f"unknown operation {name}"}]})
                return self._send({"data": answer(body.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            with self.state.lock:
                name = self.path.split("/")[-2]
                self.state._stream(name, json.loads(raw))
                return self._send({"exitcode": None, "limits": {}, "stopped": name in self.state.stopped})
        return self._send({})

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send({})

    def do_GET(self):
        self._send({})

    def _send(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
