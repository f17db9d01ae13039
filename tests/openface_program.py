"""A stand-in for OpenFace's FeatureExtraction that obeys the same command line.

Like it, it writes everything where no output is named, tells what fails on standard output with
status 0, and counts times from frames. What it does to a video, the video's name says. It keeps a
journal of its calls beside itself.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from tests import corpora

_SOURCE = r"""
import json, os, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

arguments = sys.argv[1:]
here = Path(sys.argv[0]).parent  # OpenFace seeks its models there
video, folder, name = (arguments[arguments.index(f) + 1] for f in ("-f", "-out_dir", "-of"))
deed, stem = Path(video).stem, Path(folder, Path(name).stem)
outputs = {"-aus", "-2Dfp", "-3Dfp", "-pose", "-pdmparams", "-gaze", "-tracked", "-hogalign"}
chosen = outputs & {*arguments} or outputs

wait = time.monotonic() + 5
while resource.getrlimit(resource.RLIMIT_CORE)[0] and time.monotonic() < wait:
    time.sleep(0.001)

def note(**more):
    entry = {"video": video, "pid": os.getpid(), "cwd": os.getcwd(), "folder": folder,
             "core": resource.getrlimit(resource.RLIMIT_CORE)[0], "tmpdir": os.environ["TMPDIR"],
             "threads": os.environ["OMP_NUM_THREADS"], **more}
    with open(here / "journal", "a") as journal:
        journal.write(json.dumps(entry) + "\n")

print("Attempting to read from file:", video, flush=True)
if deed == "nothing":
    note()
    print("Failed to open the video file at location:", video)
    sys.exit(0)
stem.with_name(stem.name + "_of_details.txt").write_text("Input:" + video)
print("Starting tracking\n\n", flush=True)
if deed == "hang":
    stem.with_suffix(".csv").write_text("frame, face_id, timestamp")
    note(child=subprocess.Popen(["sleep", "600"]).pid)
    time.sleep(600)
table = (here / "table.csv").read_text().splitlines(keepends=True)
if deed == "short":
    table = table[:-5]
if deed == "truncated":
    table[-1] = table[-1][:30]
if deed == "faceless":
    table = [table[0], *(row.replace(", 1, ", ", 0, ") for row in table[1:])]
stem.with_suffix(".csv").write_text("".join(table))
if "-tracked" in chosen:
    stem.with_suffix(".avi").write_bytes(b"pixels")
if "-hogalign" in chosen:
    stem.with_suffix(".hog").write_bytes(b"descriptors")
note(files=sorted(path.name for path in Path(folder).iterdir()))
if deed == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if deed == "wrapped":
    sys.exit(128 + signal.SIGSEGV)
if deed == "fail":
    sys.stderr.write("error while loading shared libraries: libopencv_core.so\n")
    sys.exit(127)
"""


def install(folder: Path, table: pd.DataFrame) -> Path:
    """The program in a folder, with a model beside it; it will write that table."""
    corpora.write(folder / "AU_predictors" / "main_dynamic_svms.txt", "models")
    corpora.write(folder / "model" / "main_ceclm_general.txt", "more models")
    corpora.write_openface(folder / "table.csv", table)
    program = corpora.write(folder / "FeatureExtraction", f"#!{sys.executable} -S{_SOURCE}")
    program.chmod(0o755)
    return program


def calls(program: Path) -> list[dict]:
    """What the program has noted of its calls so far."""
    journal = program.with_name("journal")
    return (
        [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    )
