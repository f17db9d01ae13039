"""What the synthetic corpus allows beside what a run reached: `ceiling.py RUN [CACHE]`.

The ceiling is the CCC of the generator's own traces, seen as late as the raters see them, with the
gold standard of the run's test recordings. The raters' true mean delay stands beside the run's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from affect import store
from affect.data.synthetic import ceiling


def compared(run: Path, cache: Path) -> dict[str, object]:
    """Test CCC, ceiling and delays of a run without folds."""
    places = [
        (item.corpus, item.subject, item.name)
        for item in store.read_predictions(run / "predictions.h5")
        if item.split == "test"
    ]
    recordings = [store.read(store.path_of(cache, *place)) for place in places]
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    prepared = json.loads((run / "preparation.json").read_text())["preparation"]
    return {
        "test_ccc": {name: metrics[f"test/ccc/{name}"] for name in prepared["dimensions"]},
        "ceiling": ceiling(recordings),
        "delay_s": dict(zip(prepared["dimensions"], prepared["delay_s"], strict=True)),
        "true_delay_s": float(recordings[0].truth["rater_delay_s"].mean()),
    }


if __name__ == "__main__":
    run, cache = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "cache")  # noqa: PLR2004
    sys.stdout.write(json.dumps(compared(run, cache), indent=2) + "\n")
