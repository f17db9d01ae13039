"""Clients on Ray's actors: the bits of those in this process, whatever happens to an actor."""

import dataclasses
import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.numpy import load_file

from affect import config
from affect.config import (
    DataConfig,
    FederationConfig,
    RayConfig,
    SplitConfig,
    StrategyConfig,
    TrainerConfig,
)
from affect.errors import UserError
from affect.federated import engines
from affect.federated.engines import choice
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.federate import federate
from tests import builders

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[simulation]'")
from affect.federated.engines import ray as engine  # noqa: E402
from affect.federated.engines.ray_cluster import joined  # noqa: E402

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]


# Before the fixture: a process that has joined a cluster uses that one.
BAD = {
    "nobody there": ({"address": "127.0.0.1:1"}, "no Ray cluster can be joined at '127.0.0.1:1'"),
    "no such machine": ({"address": "nowhere.invalid:6379"}, "can be joined at 'nowhere.invalid"),
    "auto without": ({"address": "auto"}, "no Ray cluster can be joined at 'auto'"),
}


@pytest.mark.parametrize(("given", "said"), BAD.values(), ids=BAD.keys())
def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch, given, said):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1" if given["address"] == "auto" else "")
    asked = FederationConfig(engine="ray", ray=RayConfig(**given))
    start_s = time.monotonic()
    with pytest.raises(UserError, match=said), choice.engine(len, 1, asked):
        pass
    assert time.monotonic() - start_s < 20


@pytest.fixture(scope="module")
def cluster():
    """The address of two nodes, which this process has joined."""
    from ray._private import ray_constants

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # the nodes are on loopback
        command = [sys.executable, "-m", "tests.ray_nodes", folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as nodes:
            address = nodes.stdout.readline().strip()
            with joined(address, 0):
                yield address
            nodes.stdin.close()


def make_app(number):
    """An app that does what its message says."""

    def app(message, context):
        told = message.content["told"]
        if told["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if told["do"] == "hang":
            time.sleep(60)
        if told["do"] == "raise":
            raise ValueError("no such recording")
        node = ray.get_runtime_context().get_node_id()
        said = ConfigRecord({"node": context.node_id, "at": node, "pid": os.getpid()})
        return Message(RecordDict({"said": said}), reply_to=message)

    return app


@pytest.fixture(scope="module")
def crew(cluster):
    crew = engine.Crew(make_app, 2, timeout_s=2.0)
    crew.start()
    yield crew
    crew.stop()


def replies(crew, dos, cohorts):
    grid = InProcessGrid(lambda tasks: crew.replies(tasks, cohorts), len(dos))
    contents = [RecordDict({"told": ConfigRecord({"do": do})}) for do in dos]
    return list(grid.send_and_receive([Message(c, i, "train") for i, c in enumerate(contents, 1)]))


@pytest.mark.parametrize(("cohorts", "sizes"), [(None, None), (2, [3, 4]), (9, None)])
def test_replies_come_in_order_from_both_nodes(crew, cohorts, sizes):
    said = [reply.content["said"] for reply in replies(crew, ["work"] * 7, cohorts)]
    assert [item["node"] for item in said] == list(range(1, 8))
    assert len({item["at"] for item in said}) == 2
    if sizes:
        pids = [item["pid"] for item in said]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == sizes


@pytest.mark.parametrize(
    ("do", "reason", "cohorts"),
    [
        ("die", "its process died", None),
        ("die", "its process died", 2),
        ("hang", "it did not answer within 2 s", 2),
        ("raise", "ValueError: no such recording", 2),
    ],
)
def test_an_actor_that_fails_costs_one_client(crew, capfd, do, reason, cohorts):
    found = {
        reply.metadata.src_node_id: reply.error.reason if reply.has_error() else ""
        for reply in replies(crew, ["work", do, "work", "work"], cohorts)
    }
    assert found == {1: "", 2: reason, 3: "", 4: ""}
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    builders.cache(folder / "cache", subjects=9)
    return folder


def experiment(corpus, **federation):
    data = DataConfig(
        cache=str(corpus / "cache"),
        standardise=["train", "centred"],
        window_frames=20,
        hop_frames=10,
        batch_size=4,
        split=SplitConfig(val_fraction=0.5, test_fraction=0.34),
    )
    trainer = TrainerConfig(accelerator="cpu", devices=1, progress=False)
    made = builders.experiment(corpus, data=data, trainer=trainer)
    return dataclasses.replace(made, federation=FederationConfig(**{"rounds": 2, **federation}))


@pytest.mark.parametrize(
    ("strategy", "cohorts"), [("fedavg", None), ("scaffold", 2)], ids=["plain", "cohort"]
)
def test_a_cluster_trains_what_this_process_trains_to_the_bit(cluster, corpus, strategy, cohorts):
    asked = {"strategy": StrategyConfig(strategy)}
    on_ray = {"engine": "ray", "workers": 2, "ray": RayConfig(cluster, cohorts=cohorts)}
    here, there = (
        federate(experiment(corpus, **asked, **more), draw=lambda _: []) for more in ({}, on_ray)
    )
    one, other = (load_file(run.folder / "model.safetensors") for run in (here, there))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name in ("metrics", "bytes_sent", "bytes_received"):
        assert here.record[name] == there.record[name]
    rows = [untimed(run.folder / "clients.csv") for run in (here, there)]
    assert rows[0] == rows[1]


def untimed(path):
    """A table of clients without its last column, seconds."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def test_a_signal_ends_a_ray_of_its_own_and_all_its_processes(corpus, tmp_path):
    """It stays on this machine, and leaves no process and no folder."""
    asked = experiment(corpus, rounds=100_000, engine="ray")
    asked = dataclasses.replace(asked, runs=str(tmp_path / "runs"))
    (tmp_path / "e.yaml").write_text(config.to_yaml(asked))
    command = [sys.executable, "-m", "affect", "federate", "-c", str(tmp_path / "e.yaml")]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": folder, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)},
        )
        wait_for(lambda: list(tmp_path.glob("runs/toy/*/metrics.csv")), process)
        started = naming(folder)
        listening = [address for pid in (process.pid, *started) for address in listens(pid)]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (75, ""), err
        assert "preempted: go on with `affect federate --resume" in err
        assert len(err.splitlines()) == 1, err
        assert started
        assert set(listening) == {"127.0.0.1"}
        assert not naming(folder)
        assert not list(Path(folder).iterdir())


def wait_for(told, process):
    deadline = time.monotonic() + 120
    while not told():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def naming(folder):
    """The processes whose command or environment names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            known = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            if folder.encode() in known and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def listens(pid):
    """The addresses at which a process waits for TCP connections."""
    tables = [Path(f"/proc/{pid}/net/tcp"), Path(f"/proc/{pid}/net/tcp6")]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return [address_of(row[1]) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def address_of(text):
    """What the kernel writes as 0100007F:1F90; an IPv4 address in IPv6 is one."""
    raw = b"".join(bytes.fromhex(text.partition(":")[0])[i : i + 4][::-1] for i in range(0, 16, 4))
    whole = ipaddress.ip_address(raw)
    return str(getattr(whole, "ipv4_mapped", None) or whole)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"workers": 9}, "federation.workers is 9, Ray has 4 cores here"),
        ({"ray": RayConfig(num_gpus=0.5)}, "federation.ray.num_gpus is 0.5 for each of 1 workers"),
    ],
)
def test_what_a_cluster_lacks_is_told(cluster, asked, said):
    with pytest.raises(UserError, match=said):
        choice.engine(make_app, 9, FederationConfig(engine="ray", **asked)).__enter__()


def test_an_app_that_cannot_be_made_is_told_by_its_own_words(cluster):
    with (
        pytest.raises(UserError, match=r"^no device 'cuda:9' here: choose auto or cpu$"),
        choice.engine(fails, 1, FederationConfig(engine="ray")),
    ):
        pass


def fails(number):
    from affect.devices import device_of

    device_of(f"cuda:{number + 9}")


def test_ray_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, engine.__name__)
    monkeypatch.delattr(engines, "ray")
    with pytest.raises(UserError, match=r"not installed: pip install 'affect\[simulation\]'"):
        choice.engine(make_app, 1, FederationConfig(engine="ray"))


@pytest.mark.parametrize(
    ("workers", "gpus", "each"), [(2, 0, 0), (1, 4, 1), (4, 4, 1), (3, 2, 0.5), (7, 1, 0.1428)]
)
def test_gpus_are_divided_so_that_every_worker_has_its_part_of_one(workers, gpus, each):
    found = engine.gpus_each(FederationConfig(workers=workers), {"CPU": 8, "GPU": gpus})
    assert found == each


def test_cohorts_are_of_one_size_and_keep_the_order():
    InProcessGrid(lambda _: iter(()), 1)  # messages have it as their sender
    message = Message(RecordDict(), 1, "train")
    tasks = [(message, Context(1, node, {}, RecordDict(), {})) for node in range(7)]
    for cohorts, sizes in ((2, [3, 4]), (3, [2, 2, 3]), (9, [1] * 7), (None, [1] * 7)):
        found = list(engine.divided(tasks, cohorts))
        assert [len(cohort) for cohort in found] == sizes
        assert [task for cohort in found for task in cohort] == tasks
    assert list(engine.divided([], 3)) == []
