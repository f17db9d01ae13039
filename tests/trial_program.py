"""A stand-in for `affect fit` that takes no time to start: it leaves a run's files and its trace.

Its "metric" is the learning rate, once an epoch; `ran.txt` gets a line at each start.
"""

import json
import os
import sys
import time
from pathlib import Path

PROGRAM = f"#!{sys.executable} -SE\n" + Path(__file__).read_text()


def main():
    folder = Path(sys.argv[0]).parent
    flags = dict(word[2:].split("=", 1) for word in sys.argv[2:] if "=" in word)
    run = folder / "runs" / "experiment" / os.environ["WANDB_RUN_ID"]
    resumed = sys.argv[2] == "--resume"
    if resumed:
        flags = json.loads((run / "run.json").read_text())["flags"]
    with (folder / "ran.txt").open("a") as file:
        start = "resumed" if resumed else "fresh"
        file.write(json.dumps([start, flags["optimizer.lr"], flags["seed"]]) + "\n")
    if flags["seed"] == "13":
        sys.exit("affect: error: thirteen is refused")
    run.mkdir(parents=True, exist_ok=True)
    record = {
        "flags": flags,
        "sweep": os.environ["WANDB_SWEEP_ID"],
        "mode": os.environ["WANDB_MODE"],
    }
    (run / "run.json").write_text(json.dumps(record))
    rate = float(flags["optimizer.lr"])
    with (run / "metrics.csv").open("w") as file:
        file.write("step,val/ccc/mean\n")
        for epoch in range(int(flags["trainer.max_epochs"])):
            file.write(f"{epoch},{rate}\n")
            file.flush()
            time.sleep(float(os.environ.get("EPOCH_S", "0")))
    reported = {} if flags["seed"] == "14" else {"val/ccc/mean": rate}
    (run / "run.json").write_text(json.dumps({**record, "metrics": reported}))


if __name__ == "__main__":
    main()
