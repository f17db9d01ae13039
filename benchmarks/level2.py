"""Speed and memory of training on action units, as a table and a JSON file.

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

from measuring import apart
from rich.console import Console
from rich.table import Table

from affect.files import write_whole
from affect.training.run import git_commit, versions

ITEMS = {
    "training": "training:measure",
    "reading": "caching:measure_reading",
    "listing": "caching:measure_listing",
    "memory": "footprint:measure_memory",
    "scaling": "footprint:measure_scaling",
    "start": "starting:measure",
}
"""An item's name and the `module:function` that measures it, given a folder and `quick`."""


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
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all works")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when a process imports torch
    console = Console(stderr=True)
    report = {"quick": options.quick, "threads": options.threads, **conditions(), "items": {}}
    for name in options.only:
        console.print(f"{name} ...")
        report["items"][name] = measure(name, options.quick)
    write_whole(options.out, (json.dumps(report, indent=2) + "\n").encode())
    Console().print(table(report["items"]))


def measure(name: str, quick: bool) -> dict[str, Any]:
    """An item's outcome as JSON values, and the machine's load before it."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        return {**asdict(apart(ITEMS[name], Path(folder), quick)), "load_before": load}


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
    rows = Table(title="Level 2", title_justify="left", show_lines=True)
    for column in ("item", "measured (median)", "goal", "met"):
        rows.add_column(column)
    for name, item in items.items():
        rows.add_row(name, item["summary"], item["goal"], "yes" if item["met"] else "[bold]no")
    return rows


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
