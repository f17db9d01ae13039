"""`affect` that rests after each epoch, round and video until the file HURRY is there.

A test can stop it on its way so, however slow the machine, and others have the cores meanwhile.
"""

import os
import sys
import time
from itertools import chain, repeat
from pathlib import Path

from affect import cli

_RESTS_S = (0.2, 0.2, 0.2, 0.2, 6.0)
"""After the first, second, ... step of a start, and after all that follow."""


def _rests_after(owner, name):
    work = getattr(owner, name)
    rests = chain(_RESTS_S, repeat(_RESTS_S[-1]))

    def paced(*arguments, **options):
        done = work(*arguments, **options)
        if not Path(os.environ["HURRY"]).exists():
            time.sleep(next(rests))
        return done

    setattr(owner, name, paced)


if __name__ == "__main__":
    if sys.argv[1] == "extract":
        from affect.extraction import pipeline

        _rests_after(pipeline, "extract_one")
    else:
        from affect.tracking import Tracker

        _rests_after(Tracker, "log")
    sys.exit(cli.main())
