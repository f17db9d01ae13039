"""A stand-in of W&B's server on loopback: what wandb 0.31's own client, agent and upload ask for.

It shows our side of the wire, and the sweeps' grid in order; not how the hosted service behaves,
but for two of its answers that matter here: a key that it does not know, and a run that names a
sweep which is not there (both HTTP errors, as github.com/wandb/wandb/issues/8115 shows).
"""

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product

import yaml

KEY = "local-" + "0" * 40
ENTITY = "tester"


class RefusedError(Exception):
    """An answer with a status of its own."""


@dataclass
class Wandb:
    """What the server has been told.

    Attributes:
        url: where it listens.
        runs: by id: `project`, `group`, `sweep`, `config`, `rows`, `summary`, `exit_code`.
        sweeps: by id: `config`, `queue` (configurations left), `begun` (those of runs).
        key: what it takes.
        broken: ids of runs that it answers with an error.
    """

    url: str = ""
    runs: dict = field(default_factory=dict)
    sweeps: dict = field(default_factory=dict)
    key: str = KEY
    broken: set = field(default_factory=set)
    asked: list = field(default_factory=list)

    def environment(self):
        """What a client needs to find it; nothing is read from the user's own files."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY}


@contextmanager
def serving():
    """A server in a thread."""
    known = Wandb()
    server = _Server(("127.0.0.1", 0), _handler(known))
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # the client keeps connections open

    def handle_error(self, *_):
        """The client may hang up when it likes."""


def _handler(known):
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Nothing: the client's words are enough."""

        def do_GET(self):
            self._say(404, {})

        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say(200, {})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self._trusted():
                return self._say(401, {"errors": [{"message": "user is not logged in"}]})
            with lock:
                if self.path == "/graphql":
                    return self._say(*_graphql(known, json.loads(body)))
                if self.path.endswith("/file_stream"):
                    run = known.runs[self.path.split("/")[-2]]
                    return self._say(200, _stream(run, json.loads(body)))
            return self._say(404, {})

        def _trusted(self):
            _, _, sent = self.headers.get("Authorization", "").partition(" ")
            return base64.b64decode(sent).decode().partition(":")[2] == known.key

        def _say(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _graphql(known, given):
    name = given.get("operationName") or given["query"].split("(")[0].split("{")[0].split()[-1]
    known.asked.append(name)
    answer = _ANSWERS.get(name)
    if answer is None:
        return 400, {"errors": [{"message": f"the stand-in does not know {name}"}]}
    try:
        return 200, {"data": answer(known, given.get("variables") or {})}
    except RefusedError as error:
        status, message = error.args
        return status, {"errors": [{"message": message}]}


def _project(name):
    return {"id": f"P-{name}", "name": name, "entity": {"id": "E", "name": ENTITY}}


def _viewer(known, given):
    return {
        "viewer": {
            **{"id": "U", "entity": ENTITY, "username": ENTITY, "email": "tester@localhost"},
            **{"flags": "{}", "teams": {"edges": []}, "admin": False, "apiKeys": {"edges": []}},
        }
    }


def _upsert_run(known, given):
    name, sweep = given["name"], given["sweep"] or None
    if sweep is not None and sweep not in known.sweeps:
        raise RefusedError(404, f"sweep {sweep} not found")
    if name in known.broken:
        raise RefusedError(400, f"run {name} is refused")
    inserted = name not in known.runs
    run = known.runs.setdefault(name, {"rows": {}, "summary": {}, "sweep": None})
    told = {"project": given["project"], "group": given["groupName"], "sweep": sweep}
    run |= {name: value for name, value in told.items() if value}
    run["config"] = json.loads(given["config"] or "{}")
    bucket = {
        **{"id": f"R-{name}", "name": name, "displayName": given["displayName"] or name},
        **{"description": "", "config": given["config"], "sweepName": sweep},
        **{"project": _project(given["project"]), "historyLineCount": len(run["rows"])},
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _resume_status(known, given):
    run = known.runs.get(given["name"])
    bucket = run and {
        **{"id": f"R-{given['name']}", "name": given["name"], "displayName": given["name"]},
        **{"summaryMetrics": json.dumps(run["summary"]), "config": json.dumps(run["config"])},
        **{"logLineCount": 0, "historyLineCount": len(run["rows"]), "eventsLineCount": 0},
        **{"historyTail": json.dumps([json.dumps(row) for row in run["rows"].values()][-1:])},
        **{"eventsTail": "[]", "tags": [], "notes": None, "wandbConfig": '{"t": 1}'},
    }
    return {"model": {**_project(given["project"]), "bucket": bucket}}


def _run_files(known, given):
    files = [{"name": name, "uploadUrl": f"{known.url}/put/{name}"} for name in given["files"]]
    return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}


def _stream(run, given):
    """History and summary as the client's file stream sends them."""
    for name, part in (given.get("files") or {}).items():
        lines = [json.loads(line) for line in part["content"]]
        if name == "wandb-history.jsonl":
            run["rows"] |= {part["offset"] + at: line for at, line in enumerate(lines)}
        elif name == "wandb-summary.json":
            run["summary"] |= lines[-1]
    if given.get("complete"):
        run["exit_code"] = given.get("exitcode")
    return {"limits": {}}


def _upsert_sweep(known, given):
    config = yaml.safe_load(given["config"])
    name = f"sweep{len(known.sweeps):03d}"
    known.sweeps[name] = {"config": given["config"], "queue": _grid(config), "begun": {}}
    sweep = {"name": name, "project": _project(given["projectName"] or "uncategorized")}
    return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}


def _grid(config):
    """Configurations in order: a value of each parameter, of a range its two ends."""
    values = {
        name: given.get("values")
        or ([given["value"]] if "value" in given else [given["min"], given["max"]])
        for name, given in config["parameters"].items()
    }
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _sweep_with_runs(known, given):
    sweep = known.sweeps.get(given["sweep"])
    if sweep is None:
        return {"project": None}
    found = {"name": given["sweep"], "config": sweep["config"], "runs": {"edges": []}}
    return {"project": {"sweep": found}}


def _create_agent(known, given):
    return {"createAgent": {"agent": {"id": given["sweep"]}}}


def _heartbeat(known, given):
    """The next configuration once the last one's run has ended, and the end after the last."""
    sweep, commands = known.sweeps[given["id"]], []
    if not json.loads(given["runState"]):
        if sweep["queue"]:
            run = f"{given['id']}-{len(sweep['begun'])}"
            configuration = sweep["queue"].pop(0)
            sweep["begun"][run] = configuration
            arguments = {name: {"value": value} for name, value in configuration.items()}
            commands = [{"type": "run", "run_id": run, "args": arguments, "program": "affect"}]
        else:
            commands = [{"type": "exit"}]
    return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}


def _artifact(known, given):
    """Said to be there already, so that no file of it is sent."""
    sequence = {"latestArtifact": {"id": "A"}}
    return {
        "createArtifact": {
            "artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}
        }
    }


_ANSWERS = {
    "Viewer": _viewer,
    "ServerFeaturesQuery": lambda *_: {"serverInfo": {"features": []}},
    "UpsertBucket": _upsert_run,
    "RunResumeStatus": _resume_status,
    "CreateRunFiles": _run_files,
    "MarkRunFilesUploaded": lambda *_: {"markRunFilesUploaded": {"success": True}},
    "UpsertSweep": _upsert_sweep,
    "SweepWithRuns": _sweep_with_runs,
    "CreateAgent": _create_agent,
    "Heartbeat": _heartbeat,
    "CreateArtifact": _artifact,
}
