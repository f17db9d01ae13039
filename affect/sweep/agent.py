"""An agent: runs a sweep's trials, several at a time, until none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, takewhile
from math import inf
from pathlib import Path

from affect.claims import TOUCH_S
from affect.config import Experiment
from affect.errors import UserError
from affect.stopping import deaf
from affect.sweep import trial as trials
from affect.sweep.file import SweepFile
from affect.sweep.folder import ENDED, Sweep, Trial
from affect.sweep.search import proposals
from affect.sweep.space import arguments, digest, size
from affect.sweep.trial import Process, ended, history

_POLL_S = 0.05
_LOOK_S = 2.0
"""From one look for work to the next where there was none: a network's file system is spared."""
_MOST_FAILURES = 3
"""So many failed trials, and none that finished, end a sweep, as they do W&B's agent."""


class Agent:
    """Runs trials.

    Args:
        sweep: which other agents may run too.
        experiment: of any configuration; its runs are named alike in all.
        jobs: trials at a time.
        most: trials of the sweep in all; None for its file's `run_cap`.
        alone: do not wait at the end for trials that other agents run.
        tell: takes lines of progress.

    Raises:
        UserError: the sweep would never end.
    """

    def __init__(
        self,
        sweep: Sweep,
        experiment: Experiment,
        *,
        jobs: int,
        most: int | None,
        alone: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._sweep = sweep
        self._experiment = experiment
        self._jobs = jobs
        self._cap = limit(sweep.file, most or sweep.count)
        self._tell = tell
        self._running: dict[int, Process] = {}
        self._put_down: set[int] = set()
        self._alone = alone
        self._touched_s = self._look_s = 0.0
        self._told = False

    def work(self) -> None:
        """Run trials until all are done or begun elsewhere.

        Raises:
            UserError: the first trials all fail.
            Preempted: a signal asked for the machine; all trials are put down.
            KeyboardInterrupt: likewise, after Ctrl-C.
        """
        try:
            while self._fill() or self._running or self._waits():
                time.sleep(_POLL_S)
                self._collect()
                self._stop_early()
                self._show_life()
        except BaseException:
            with deaf():
                self._put_all_down()
            raise

    def _fill(self) -> bool:
        """Start trials while there is room; whether any was started."""
        started = False
        while len(self._running) < self._jobs and time.monotonic() >= self._look_s:
            trial = self._next()
            if trial is None:
                self._look_s = time.monotonic() + _LOOK_S
                break
            self._running[trial.number] = trials.start(self._sweep, trial)
            started = True
        return started

    def _waits(self) -> bool:
        """Whether there is reason to wait for trials that other agents run."""
        if self._alone:
            return False
        elsewhere = [trial for trial in self._sweep.trials() if trial.status == "running"]
        if elsewhere and not self._told:
            self._tell(f"waiting for {len(elsewhere)} trials that other agents run")
        self._told = True
        if elsewhere:
            time.sleep(_LOOK_S)
        return bool(elsewhere)

    def _next(self) -> Trial | None:
        """A trial that is this agent's from now on: one that was put down, or a new one."""
        known = {trial.number: trial for trial in self._sweep.trials()}
        if self._reached(known):
            return None
        begun = self._sweep.numbers()
        left = [n for n in begun if n not in known or known[n].status not in ENDED]
        for number in (*left, *self._fresh(begun)):
            mine = number in self._put_down or number in self._running
            if not mine and self._sweep.take(number):
                trial = self._sweep.trial(number)  # its last owner may have ended it just now
                if trial is None:
                    return self._new(number, known)
                if trial.status not in ENDED:
                    return self._begun(trial)
        return None

    def _fresh(self, begun: Sequence[int]) -> Iterator[int]:
        """Numbers that no trial has yet, in order."""
        taken = set(begun)
        return (number for number in takewhile(self._cap.__gt__, count()) if number not in taken)

    def _begun(self, trial: Trial) -> Trial:
        """A trial that somebody has left, once nothing of it runs on this machine."""
        if self._sweep.own_host(trial.number):
            trials.end_survivor(trial)
        return trial

    def _new(self, number: int, known: Mapping[int, Trial]) -> Trial | None:
        """A trial with a configuration that no other has; None if there is none left."""
        file = self._sweep.file
        tried = [trial.tried for trial in known.values()]
        for point in proposals(file, self._sweep.seed, number, tried):
            configuration = arguments(file.space, point)
            if self._sweep.reserve(digest(configuration), number):
                run_id = f"{self._sweep.id}-{number:04d}"
                run = self._run_folder(configuration) / run_id
                return self._sweep.write(Trial(number, point, configuration, run_id, str(run)))
        self._put_down.add(number)
        self._sweep.release(number)
        return None

    def _run_folder(self, configuration: Mapping[str, object]) -> Path:
        runs = configuration.get("runs", self._experiment.runs)
        return Path(str(runs)) / str(configuration.get("name", self._experiment.name))

    def _collect(self) -> None:
        """Write down what trials that have ended have come to."""
        for number, process in list(self._running.items()):
            if process.popen.poll() is None:
                continue
            trial = ended(self._sweep, process)
            del self._running[number]
            self._look_s = 0.0
            if trial.status == "interrupted":
                self._put_down.add(number)
            self._tell(told(trial, self._sweep))
            self._refuse_failing()

    def _stop_early(self) -> None:
        """Ask trials to end that Hyperband stops, and those that were asked in vain to hurry."""
        rule = self._sweep.file.hyperband
        for process in self._running.values():
            if process.asked_s is not None:
                process.ask_to_end()
            elif rule is not None and _grown(process):
                costs = self._costs(process.trial)
                if rule.reached(len(costs)) > process.brackets:
                    process.brackets = rule.reached(len(costs))
                    everyone = [self._costs(trial) for trial in self._sweep.trials()]
                    if rule.stops(costs, everyone):
                        process.ask_to_end()

    def _costs(self, trial: Trial) -> list[float]:
        """A trial's history, lower being better."""
        metric = self._sweep.file.metric
        return [metric.cost(value) for value in history(self._sweep.file, Path(trial.run))]

    def _reached(self, known: Mapping[int, Trial]) -> bool:
        """Whether a trial has reached the metric's target."""
        metric = self._sweep.file.metric
        values = [t.value for t in known.values() if t.status == "done" and t.value is not None]
        target = metric.target
        return target is not None and any(metric.cost(v) <= metric.cost(target) for v in values)

    def _refuse_failing(self) -> None:
        found = self._sweep.trials()
        failed = [trial for trial in found if trial.status == "failed"]
        if len(failed) >= _MOST_FAILURES and not any(t.status == "done" for t in found):
            raise UserError(none_finished(self._sweep, failed))

    def _show_life(self) -> None:
        if time.monotonic() - self._touched_s > TOUCH_S:
            self._touched_s = time.monotonic()
            for number in self._running:
                self._sweep.touch(number)

    def _put_all_down(self) -> None:
        """End all trials, so that another agent can go on with them."""
        while self._running:
            for number, process in list(self._running.items()):
                if process.popen.poll() is None:
                    process.ask_to_end()
                    continue
                del self._running[number]
                seconds = process.trial.seconds + time.monotonic() - process.begun_s
                with suppress(UserError):  # a full disk: what stopped the agent must be told
                    if process.popen.returncode == 0:
                        ended(self._sweep, process)
                    else:
                        trials.put_down(self._sweep, process.trial, round(seconds, 3))
            time.sleep(_POLL_S)


def limit(file: SweepFile, most: int | None) -> float:
    """How many trials there are to be in all: `run_cap`, unless the command line says otherwise.

    Raises:
        UserError: there would be no end.
    """
    least = min(size(file.space), most or file.run_cap or inf)
    if least == inf:
        raise UserError(f"method {file.method} never ends by itself: give --count N")
    return least


def none_finished(sweep: Sweep, failed: list[Trial]) -> str:
    """That no trial finished, and what the first one said."""
    first = failed[0]
    log = sweep.trial_folder(first.number) / "log.txt"
    return f"no trial finished; trial {first.number}: {first.reason} (see {log})"


def told(trial: Trial, sweep: Sweep) -> str:
    """A line about a trial that has ended."""
    value = "" if trial.value is None else f", {sweep.file.metric.name} {trial.value:.4f}"
    reason = f": {trial.reason}" if trial.reason else ""
    return f"trial {trial.number}: {trial.status}{value}, {trial.seconds:.1f} s{reason}"


def _grown(process: Process) -> bool:
    """Whether a trial's metrics have changed since they were read last."""
    try:
        size_now = (Path(process.trial.run) / "metrics.csv").stat().st_size
    except OSError:
        return False
    changed = size_now != process.size
    process.size = size_now
    return changed
