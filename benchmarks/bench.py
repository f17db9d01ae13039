"""Speed and memory of extraction and of training, as a table and a JSON file.

Every item runs in a process of its own and says its goal and whether it was met. What is compared
is measured side by side, so that ratios hold on any machine; seconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from extracting import Given
from measuring import Outcome, apart
from rich.console import Console
from rich.table import Table

from affect.extraction.openface.weights import home_in_environment
from affect.files import write_whole
from affect.training.run import git_commit, versions

ITEMS = {
    "steps": "extracting:measure_steps",
    "extraction": "extracting:measure_whole",
    "length": "extracting:measure_length",
    "exactness": "extracting:measure_exactness",
    "training": "training:measure",
    "federation": "federating:measure_few",
    "clients": "federating:measure_many",
    "engines": "simulating:measure",
    "peers": "peers:measure",
    "cohort": "federating:measure_cohort",
    "reading": "caching:measure_reading",
    "listing": "caching:measure_listing",
    "staging": "caching:measure_staging",
    "memory": "footprint:measure_memory",
    "scaling": "footprint:measure_scaling",
    "start": "starting:measure",
    "restart": "resuming:measure",
    "submission": "submitting:measure",
    "sweep": "sweeping:measure",
}
"""An item's name and the `module:function` that measures it, given a folder and `quick`,
and for level 1 what was `Given`."""

MET = {True: "yes", False: "[bold]no", None: "not measured"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--only", nargs="+", choices=list(ITEMS), default=list(ITEMS))
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of torch; one by default: with more, a busy neighbour stalls them all",
    )
    level1 = parser.add_argument_group("level 1", "needs all of these")
    level1.add_argument("--video", type=Path, help="a clip of one face, best of 640 x 360")
    level1.add_argument("--reference", type=Path, help="OpenFace's CSV of it")
    level1.add_argument("--openface", type=Path, help="OpenFace's folder (or OPENFACE_HOME)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all works")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when a process imports torch
    files = (options.video, options.reference, options.openface or home_in_environment())
    given = Given(*filter(None, files)) if all(files) else None
    console = Console(stderr=True)
    report = {"quick": options.quick, "threads": options.threads, **conditions(), "items": {}}
    for name in options.only:
        console.print(f"{name} ...")
        report["items"][name] = measure(name, options.quick, given)
    write_whole(options.out, (json.dumps(report, indent=2) + "\n").encode())
    Console().print(table(report["items"]))


def measure(name: str, quick: bool, given: Given | None) -> dict[str, Any]:
    """An item's outcome as JSON values, and the machine's load before it."""
    load = os.getloadavg()[0]
    needed = [given] if ITEMS[name].startswith("extracting:") else []
    if needed == [None]:
        outcome = Outcome("", None, "give --video, --reference and --openface", 0, {}, {}, {})
    else:
        with tempfile.TemporaryDirectory() as folder:
            outcome = apart(ITEMS[name], Path(folder), quick, *needed)
    return {**asdict(outcome), "load_before": load}


def conditions() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        },
    }


def table(items: dict[str, dict[str, Any]]) -> Table:
    """One row an item."""
    rows = Table(title="Speed and memory", title_justify="left", show_lines=True)
    for column in ("item", "measured (median)", "goal", "met"):
        rows.add_column(column)
    for name, item in items.items():
        rows.add_row(name, item["summary"], item["goal"], MET[item["met"]])
    return rows


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
