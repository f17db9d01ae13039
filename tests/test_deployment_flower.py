"""A real deployment on this machine: three sites, TLS, keys; one is killed and comes back."""

import csv
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from affect import store
from affect.config import to_yaml
from affect.federated.client import enrolled_app
from affect.federated.engines.cohorts import in_cohorts
from affect.federated.engines.deployment import lead
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.enrolment import EnrolledPlace
from tests import sites

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        "deployment" not in os.environ.get("AFFECT_REQUIRE", "").split(","),
        reason="it takes two minutes: AFFECT_REQUIRE=deployment",
    ),
]
SCRIPTS = Path(__file__).parents[1] / "deployment"
ROUNDS, TIMEOUT_S = 6, 40.0
LONGEST_S = 240


class Host:
    """Starts the scripts, each with Flower's files in a folder of its own, and ends them all."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        self.ports = iter(free_ports(8))

    def environment(self, home, retry_s=120):
        known = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLWR_", "AFFECT_RUN_ID", "SLURM_"))
        }
        root = str(SCRIPTS.parent)
        home = str(self.folder / "homes" / home)
        own = {"FLWR_HOME": home, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        return {**known, **own, "AFFECT_RETRY_S": str(retry_s)}

    def start(self, home, script, *arguments, log=None, retry_s=120):
        log = self.folder / f"{log or f'{home}.{script}'}.log"
        with log.open("a") as file:
            process = subprocess.Popen(
                [SCRIPTS / f"{script}.sh", *map(str, arguments)],
                cwd=self.folder,
                env=self.environment(home, retry_s),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log = log
        self.started.append(process)
        return process

    def run(self, home, script, *arguments):
        return subprocess.run(
            [SCRIPTS / f"{script}.sh", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(home),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def end(self):
        for process in reversed(self.started):
            kill(process)


def kill(process):
    """End a script's process and all that it has started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_ports(count):
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in taken]
    for item in taken:
        item.close()
    return ports


def wait_for(told, what, seconds=LONGEST_S):
    end_s = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < end_s, f"{what} after {seconds} s"
        time.sleep(0.1)
    return found


def connect(host, site, gate):
    folder = host.folder
    key, path = folder / "keys" / site, folder / f"{site}.socket"
    authority = folder / "certificates" / "ca.crt"
    return host.start(
        site, "supernode", f"localhost:{gate}", authority, key, path, next(host.ports)
    )


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.end()


def test_three_sites_train_while_one_is_killed_and_returns(host):
    folder = host.folder
    for site, cache in sites.caches(folder).items():
        arguments = site, cache, folder / "states" / site, folder / f"{site}.socket"
        host.start(site, "site", *arguments)
        assert host.run(site, "key", folder / "keys" / site).returncode == 0
    certificates = folder / "certificates"
    assert host.run("server", "certificates", certificates, "localhost").returncode == 0
    superlink, gate = next(host.ports), next(host.ports)
    host.start("server", "superlink", certificates, superlink)
    host.start("server", "gate", certificates, gate, superlink, "127.0.0.1")
    register(host)
    sockets = [folder / f"{site}.socket" for site in sites.PEOPLE]
    wait_for(lambda: all(path.exists() for path in sockets), "a site does not answer")
    strangers = uninvited(host, gate)
    nodes = {site: connect(host, site, gate) for site in sites.PEOPLE}

    asked = sites.experiment(
        folder, rounds=ROUNDS, evaluate_every=ROUNDS, failure_fraction=0.4, timeout_s=TIMEOUT_S
    )
    (folder / "experiment.yaml").write_text(to_yaml(asked))
    run = host.start("server", "run", 3, folder / "experiment.yaml")
    (path,) = wait_for(lambda: list(folder.glob("runs/toy/*/metrics.csv")), "no round")
    kill(nodes["west"])
    nodes["west"] = connect(host, "west", gate)
    assert run.wait(timeout=LONGEST_S) == 0, run.log.read_text()

    assert_as_in_process(path.parent, asked, folder)
    assert_refused(strangers)
    assert_only_sites_pass(host, gate, certificates)
    assert_ports_in_use_are_told(host, gate, superlink, certificates)


def register(host):
    """Let the sites in, as soon as the SuperLink answers."""
    folder = host.folder
    for site in sites.PEOPLE:
        key = folder / "keys" / f"{site}.pub"
        wait_for(
            lambda key=key, site=site: host.run("server", "register", key, site).returncode == 0,
            f"{site} is not registered",
        )


def uninvited(host, gate):
    """One whose key is not registered, and one who trusts another authority."""
    folder = host.folder
    assert host.run("x", "key", folder / "keys" / "x").returncode == 0
    assert host.run("x", "certificates", folder / "other", "localhost").returncode == 0
    known, answering = folder / "certificates" / "ca.crt", folder / "east.socket"
    at = f"localhost:{gate}"
    return {
        "Failed to activate SuperNode": host.start(
            *("x", "supernode", at, known, folder / "keys" / "x", answering, next(host.ports)),
            log="unregistered",
            retry_s=0,
        ),
        "certificate verify failed": host.start(
            *("x", "supernode", at, folder / "other" / "ca.crt", folder / "keys" / "east"),
            *(answering, next(host.ports)),
            log="untrusting",
            retry_s=0,
        ),
    }


def assert_as_in_process(folder, asked, corpus):
    """The same model as of sites in this process, of which one is silent while it was away."""
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    assert {item["client"] for item in record["failures"]} == {"west/train"}
    away = [item["round"] for item in record["failures"]]
    assert away == list(range(2, 2 + len(away)))
    with (folder / "clients.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["client"] == "west/train"]
    assert [int(row["round"]) for row in rows] == [1, *range(away[-1] + 1, ROUNDS + 1)]
    assert away[-1] < ROUNDS
    here = lead(in_process(corpus, away), asked, 3)
    one, other = (load_file(item / "model.safetensors") for item in (folder, here.folder))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name, value in here.record["metrics"].items():
        assert record["metrics"][name] == value, name


def in_process(corpus, away):
    device = torch.device("cpu")
    places = [
        EnrolledPlace(site, store.entries(corpus / site), corpus / "here" / site, device)
        for site in sites.PEOPLE
    ]
    apps = [enrolled_app(place) for place in places]
    silent = list(sites.PEOPLE).index("west") + 1

    def app(message, context):
        numbers = message.content["numbers"]
        if context.node_id == silent and message.metadata.message_type == "train":
            assert numbers["round"] not in away, "silent"
        return apps[context.node_id - 1](message, context)

    return InProcessGrid(in_cohorts(app), len(apps))


def assert_refused(strangers):
    for said, process in strangers.items():
        assert process.wait(timeout=30) != 0
        assert said in process.log.read_text()


def assert_only_sites_pass(host, gate, certificates):
    import ssl

    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    with httpx.Client(base_url=f"https://localhost:{gate}", verify=context) as outside:
        for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"):
            assert outside.post(path).status_code == 403
        assert outside.post("/v1/fleet/..%2fcontrol%2flist-nodes").status_code == 403
        assert outside.post("/v1/fleet/pull-messages").status_code not in (200, 403)
    log = (host.folder / "server.gate.log").read_text()
    assert "/v1/control/start-run from 127.0.0.1: not for outside" in log
    assert "activate-node from 127.0.0.1: refused" in log


def assert_ports_in_use_are_told(host, gate, superlink, certificates):
    for script, arguments in {
        "superlink": (certificates, superlink),
        "gate": (certificates, gate, superlink, "127.0.0.1"),
    }.items():
        told = host.run("y", script, *arguments)
        assert told.returncode == 2
        assert told.stdout == ""
        (line,) = told.stderr.splitlines()
        assert "in use" in line
