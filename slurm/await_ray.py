"""Waits until so many nodes have joined the Ray at RAY_ADDRESS: `await_ray.py NODES [SECONDS]`."""

import logging
import sys
import time

import ray


def alive() -> int:
    """How many nodes are there."""
    return sum(node["Alive"] for node in ray.nodes())


def main() -> int:
    """Status 0 once they have joined, 1 where they have not in time."""
    wanted, seconds = int(sys.argv[1]), float([*sys.argv, "120"][2])
    ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
    deadline = time.monotonic() + seconds
    while alive() < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    sys.stderr.write(f"Ray: {alive()} of {wanted} nodes have joined\n")
    return int(alive() < wanted)


if __name__ == "__main__":
    sys.exit(main())
