"""What a command opens for writing, and what it leaves where libraries put their own files."""

import json
import os
import subprocess
import sys
from pathlib import Path

_WATCH = """
import json, os, sys
written = []
def hook(event, arguments):
    if event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.append(str(arguments[0]))
sys.addaudithook(hook)
from affect.cli import main
status = main(sys.argv[1:])
print(json.dumps([status, written]))
"""


def written_by(arguments, folder: Path, *, before: str = "", **environment: str):
    """Paths that Python opened for writing, and files left in the process's own folders.

    `before` is run before the watch begins; the command must end with status 0. It works in
    `folder/work`, and finds HOME, TMPDIR and XDG_CACHE_HOME beside it.
    """
    own = {name: folder / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "work")}
    for place in own.values():
        place.mkdir()
    environment = {
        **os.environ,
        **{name: str(place) for name, place in own.items()},
        "PYTHONPATH": str(Path.cwd()),
        **environment,
    }
    environment.pop("OPENFACE_HOME", None)
    finished = subprocess.run(
        [sys.executable, "-B", "-c", before + _WATCH, *map(str, arguments)],
        env=environment,
        cwd=own["work"],
        capture_output=True,
        text=True,
        check=True,
    )
    status, written = json.loads(finished.stdout.splitlines()[-1])
    assert status == 0
    return set(map(Path, written)), [path for place in own.values() for path in place.rglob("*")]
