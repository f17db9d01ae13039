"""Fixtures of all tests; shapes in jaxtyping annotations are checked while testing."""

import os
import signal
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests import clusters, typechecker

# A shell lets what it starts in the background ignore Ctrl-C, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

install_import_hook("affect", f"{typechecker.__name__}.check")


OPENFACE_CACHE = Path("~/.cache/affect/openface").expanduser()


@pytest.fixture
def openface_home():
    """The user's OpenFace folder: OPENFACE_HOME, or where a cache of it is usually kept."""
    home = Path(os.environ.get("OPENFACE_HOME") or OPENFACE_CACHE)
    if not home.is_dir():
        pytest.skip(f"no OpenFace models: export OPENFACE_HOME=... or lay them at {OPENFACE_CACHE}")
    return home


@pytest.fixture
def unverified(monkeypatch):
    """Random models are not OpenFace's own files."""
    from affect.extraction.openface import weights  # after the hook that checks shapes

    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *a, **k: load(*a, **k, verify=False))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM of this session's own, of which all commands of SLURM know."""
    with clusters.running(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip of a marker that AFFECT_REQUIRE lists (`real_data,browser`) is a failure."""
    report = yield
    required = {name for name in os.environ.get("AFFECT_REQUIRE", "").split(",") if name}
    missing = required & {marker.name for marker in item.iter_markers()}
    if report.skipped and missing:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but AFFECT_REQUIRE lists {min(missing)}"
    return report
