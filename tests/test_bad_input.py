"""What a user can mend ends in one line that says what, where and how, and leaves nothing behind.

Each row of `CASES` sets up a mistake and names the command that meets it; `AT` in what the error
must say stands for the case's own folder.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from affect import files, store
from affect.cli import main
from tests import builders, corpora

HAINES = Path(__file__).parents[1] / "experiments" / "haines.yaml"
TINY = {
    "name": "toy",
    "data.window_frames": 30,
    "data.split.val_fraction": 0.34,
    "data.split.test_fraction": 0.34,
    "model.hidden_size": 4,
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.progress": "false",
    "tracking.mode": "disabled",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a case happens: its own folder, a finished run to use, and what can be patched."""

    at: Path
    run: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def cache(self):
        return self.at / "cache"

    def fit(self, **changes):
        """The arguments of a tiny experiment on this cache; changes name keys with `__` for `.`."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        flags = {**TINY, "data.cache": self.cache, "runs": self.at / "runs", **named}
        return ["fit", *(f"--{key}={value}" for key, value in flags.items())]


# --- set-ups: each returns the command's arguments ------------------------------------------------


def toy(place, **settings):
    """A whole cache, for mistakes that lie elsewhere."""
    return builders.cache(place.cache, **settings)


def fit_toy(**changes):
    """A whole cache and an experiment with this mistake."""

    def set_up(place):
        toy(place)
        return place.fit(**changes)

    return set_up


def federate_toy(**changes):
    """The same, trained by clients."""

    def set_up(place):
        return ["federate", *fit_toy(**changes)(place)[1:]]

    return set_up


def federate_short(place):
    """Recordings of 7 s, and a delay to estimate."""
    toy(place, frames=35)
    return ["federate", *place.fit(data__delay_s="auto")[1:]]


def with_broken_file(break_it):
    """Arguments of `fit` on a cache whose first recording `break_it(path)` has broken."""

    def set_up(place):
        toy(place)
        break_it(store.path_of(place.cache, "toy", "P0", "1"))
        return place.fit()

    return set_up


def verified(set_up):
    """The same set-up, looked at by `verify`."""

    def verify(place):
        set_up(place)
        return ["verify", place.cache]

    return verify


def truncate(path):
    path.write_bytes(path.read_bytes()[:1500])


def truncate_to_header(path):
    path.write_bytes(path.read_bytes()[:100])


def replace_by_foreign(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


def raise_version(path):
    path.write_bytes(path.read_bytes().replace(b'"affect": 1', b'"affect": 9', 1))


def without_units(place):
    frame = corpora.faces(20).filter(regex="^(?!AU)")
    corpora.write_openface(place.at / "aus" / "P1.csv", frame)
    return ["import", "openface-csv", place.at / "aus", "--cache", place.cache]


def without_data(place):
    root = corpora.avec2016(place.at / "AVEC")
    for part in ("dev_1", "test_1", "train_1"):
        path = root / f"features_video_geometric/arousal/{part}.arff"
        path.write_text(path.read_text().replace("@data", ""))
    return ["import", "avec", root, "--cache", place.cache]


def labels_elsewhere(place):
    root = corpora.recola(place.at / "RECOLA", ["P16"])
    path = root / "RECOLA-Annotation/emotional_behaviour/arousal/P16.csv"
    late = corpora.ratings(21)
    corpora.write_ratings(path, late.assign(time=late["time"] + 500))
    return ["import", "recola", root, "--cache", place.cache]


def labels_in_milliseconds(place):
    root = corpora.recola(place.at / "RECOLA", ["P16"])
    path = root / "RECOLA-Annotation/emotional_behaviour/arousal/P16.csv"
    late = corpora.ratings(21)
    corpora.write_ratings(path, late.assign(time=late["time"] * 1000))
    return ["import", "recola", root, "--cache", place.cache]


def imports_table(rows):
    """An import of a table with these rows."""

    def set_up(place):
        table = corpora.write(place.at / "x.csv", "who,t,AU06,mood\n" + "".join(rows))
        names = "corpus: c\nsubject: who\ntime: t\nfeatures: [AU*]\nannotations: {v: mood}\n"
        schema = corpora.write(place.at / "schema.yaml", names)
        return ["import", "table", table, "--cache", place.cache, "--option", f"schema={schema}"]

    return set_up


def no_face(place):
    toy(place)
    lost = np.full((60, len(builders.NAMES)), np.nan, np.float32)
    blind = builders.recording("P0", intensity=lost, success=np.zeros(60, bool))
    store.write(blind, place.cache)
    return place.fit()


def constant_labels(place):
    flat = {"valence": np.full(60, 0.5, np.float32), "arousal": np.zeros(60, np.float32)}
    toy(place, annotations=flat)
    return place.fit()


def unrated(place):
    toy(place, annotations={})
    return place.fit()


def empty_folder(*command):
    """A command on the empty folder `AT/cache`."""

    def set_up(place):
        place.cache.mkdir()
        return place.fit() if command == ("fit",) else [*command, place.cache]

    return set_up


def predicts(set_up_cache, *flags):
    """Arguments of `predict` on the cache that `set_up_cache(place)` has filled."""

    def set_up(place):
        set_up_cache(place)
        return ["predict", place.run, place.cache, "--out", place.at / "out.csv", *flags]

    return set_up


def below_a_file(*command):
    """A command whose last argument is a path below the regular file `AT/file`."""

    def set_up(place):
        (place.at / "file").write_text("")
        return [*command, place.at / "file" / "folder"]

    return set_up


def runs_below_a_file(place):
    toy(place)
    (place.at / "file").write_text("")
    return place.fit(runs=place.at / "file" / "runs")


def predicts_below_a_file(place):
    toy(place)
    (place.at / "file").write_text("")
    return ["predict", place.run, place.cache, "--out", place.at / "file" / "out.csv"]


def compares_below_a_file(place):
    (place.at / "file").write_text("")
    return ["compare", place.run, "--out", place.at / "file" / "report.html"]


def compares_with_another_gold_standard(place):
    toy(place)
    other = place.at / "runs" / "toy"
    assert main([str(argument) for argument in place.fit(data__gold_standard="mean")]) == 0
    return ["compare", place.run, *other.iterdir()]


def disk_is_full(place, after=0):
    """From now on, nothing can be synced but the next `after` files."""
    left = iter(range(after))

    def fsync(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr(files, "os", SimpleNamespace(fsync=fsync))


def import_to_a_full_disk(place):
    root = corpora.recola(place.at / "RECOLA")
    disk_is_full(place)
    return ["import", "recola", root, "--cache", place.cache]


def fit_on_a_full_disk(after):
    """The disk is full once `after` files have been written: the first are config and run.json."""

    def set_up(place):
        toy(place)
        disk_is_full(place, after)
        return place.fit()

    return set_up


def predict_to_a_full_disk(place):
    arguments = predicts(toy)(place)
    disk_is_full(place)
    return arguments


def imports(kind, *options):
    def set_up(place):
        (place.at / "corpus").mkdir()
        return ["import", kind, place.at / "corpus", "--cache", place.cache, *options]

    return set_up


def without_haines_csv(place):
    place.monkeypatch.delenv("HAINES_CSV", raising=False)
    return ["fit", "-c", HAINES, f"--data.cache={place.cache}", f"--runs={place.at / 'runs'}"]


def on_no_run(*command):
    """A command on the folder `AT/no-run`, which holds no run."""

    def set_up(place):
        (place.at / "no-run").mkdir()
        return [*command, place.at / "no-run"]

    return set_up


def broken_run(name, *command):
    """A command on a copy of the run, whose file `name` is cut to a quarter of its length."""

    def set_up(place):
        folder = shutil.copytree(place.run, place.at / "run")
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
        if command == ("fit", "--resume"):
            (folder / "predictions.h5").unlink()
            record = (folder / "run.json").read_text()
            (folder / "run.json").write_text(record.replace('"done"', '"running"'))
        return [*command, folder]

    return set_up


def edited(name, edit, *command):
    """A command on a copy of the run, with `edit(text)` for what the file `name` holds."""

    def set_up(place):
        folder = shutil.copytree(place.run, place.at / "run")
        path = folder / name
        path.write_text(edit(path.read_text()))
        return [*command, folder]

    return set_up


def recorded(**changes):
    """`compare` with a run whose `run.json` has these fields; None takes one out."""

    def edit(text):
        fields = {**json.loads(text), **changes}
        return json.dumps({key: value for key, value in fields.items() if value is not None})

    return edited("run.json", edit, "compare")


def other_units(place):
    names = ("AU06_r", "AU17_r", "AU25_r")
    builders.cache(place.cache, intensity_names=names)


def other_test_subjects(place):
    toy(place)
    other = place.at / "runs" / "toy"
    assert main([str(argument) for argument in place.fit(data__split__seed=1)]) == 0
    return ["compare", place.run, *other.iterdir()]


def experiment_file(content):
    """`fit` with a file of this content."""

    def set_up(place):
        path = place.at / "experiment.yaml"
        path.write_bytes(content)
        return [*place.fit(), "-c", path]

    return set_up


def fixed(*arguments):
    """These arguments, with `AT` for the case's folder."""
    return lambda place: [str(argument).replace("AT", str(place.at)) for argument in arguments]


# --- the table -----------------------------------------------------------------------------------

LISTED = {
    "data__split__kind": "listed",
    "data__split__train": '["P*"]',
    "data__split__val": '["P0"]',
    "data__split__test": '["P1"]',
}
SITE = ("cache", "state", "socket")
UNSYNCED = "No space left on device; free space or choose another folder"

Case = tuple[str, Callable[[Place], list], tuple[str, ...]]
CASES: list[Case] = [
    # paths
    ("info of no cache", fixed("info", "AT/none"), ("no cache at AT/none", "`affect extract`")),
    ("verify of no cache", fixed("verify", "AT/none"), ("no cache at AT/none", "`affect extract`")),
    ("fit on no cache", lambda p: p.fit(), ("no cache at AT/cache", "`affect extract`")),
    ("predict on no cache", predicts(lambda _: None), ("no cache at AT/cache", "`affect extract`")),
    ("import of no source", fixed("import", "recola", "AT/x", "--cache", "AT/c"), ("at AT/x",)),
    ("info of an empty cache", empty_folder("info"), ("no recordings in AT/cache", "`affect")),
    ("verify of an empty cache", empty_folder("verify"), ("no recordings in AT/cache", "`affect")),
    (
        "fit on an empty cache",
        empty_folder("fit"),
        ("no recordings in AT/cache", "`affect extract`"),
    ),
    (
        "predict on an empty cache",
        predicts(lambda place: place.cache.mkdir()),
        ("no recordings in AT/cache", "`affect extract`"),
    ),
    ("info of an empty path", fixed("info", ""), ("empty", "cache")),
    ("verify of an empty path", fixed("verify", ""), ("empty", "cache")),
    ("import of an empty path", fixed("import", "recola", "", "--cache", "AT/c"), ("empty",)),
    (
        "import to an empty path",
        fixed("synth", "--subjects", 1, "--seconds", 5, "--cache", ""),
        ("empty", "cache"),
    ),
    ("fit on an empty path", fit_toy(data__cache=""), ("empty", "data.cache")),
    ("fit into an empty path", fit_toy(runs=""), ("empty", "runs")),
    ("test of an empty path", fixed("test", ""), ("empty", "run")),
    # files
    ("fit on a truncated recording", with_broken_file(truncate), ("toy/P0/1.h5", "truncated")),
    (
        "verify of a truncated recording",
        verified(with_broken_file(truncate)),
        ("AT/cache/toy/P0/1.h5", "truncated", "1 of 6 recordings in AT/cache"),
    ),
    (
        "fit on the start of a recording",
        with_broken_file(truncate_to_header),
        ("AT/cache/toy/P0/1.h5", "truncated", "take the file out of it"),
    ),
    (
        "fit on a foreign HDF5 file",
        with_broken_file(replace_by_foreign),
        ("AT/cache/toy/P0/1.h5 is not a recording", "name a cache, or take the file out of it"),
    ),
    (
        "verify of a foreign HDF5 file",
        verified(with_broken_file(replace_by_foreign)),
        ("AT/cache/toy/P0/1.h5 is not a recording", "name a cache, or take the file out of it"),
    ),
    (
        "fit on another schema version",
        with_broken_file(raise_version),
        ("AT/cache/toy/P0/1.h5 has schema version 9, not 1", "import it again"),
    ),
    (
        "import of a CSV without action units",
        without_units,
        ("AT/aus/P1.csv has no AU columns", "run FeatureExtraction with -aus"),
    ),
    (
        "import of an ARFF without @data",
        without_data,
        ("AT/AVEC/features_video_geometric/arousal/dev_1.arff has no line @data", "ARFF"),
    ),
    (
        "import of labels outside the face's time",
        labels_elsewhere,
        ("arousal/P16.csv: arousal labels from 500 to 500.8 s", "give both the same clock"),
    ),
    (
        "import of labels in milliseconds",
        labels_in_milliseconds,
        ("arousal/P16.csv: arousal labels from 0 to 800 s", "the same clock, in seconds"),
    ),
    (
        "import of features in milliseconds",
        imports_table(f"p,{row * 40},{row},0\n" for row in range(1500)),
        ("AT/x.csv: 1500 rows span 59960 s at 0.025 frames a second", "give times in seconds"),
    ),
    (
        "import of decimal commas between commas",
        imports_table(f"p,0,{row:02d},0,30,0,020\n" for row in range(20)),
        ("AT/x.csv: line 2 has 7 cells, the header 4", "write decimals with a point"),
    ),
    (
        "import of two recordings as one",
        imports_table(f"p,{row % 25},{row},0\n" for row in range(50)),
        ("AT/x.csv: times repeat from 0 s on", "the schema's key recording"),
    ),
    # data
    (
        "a subject in two splits",
        fit_toy(**LISTED),
        ("subject 'P0' is in both train and val", "mend data.split"),
    ),
    (
        "too few frames for a window",
        fit_toy(data__window_frames=600),
        ("data.window_frames is 600", "has 60 frames", "choose a shorter window"),
    ),
    (
        "a recording without a face",
        no_face,
        ("recording toy/P0/1 has no frame with a face", "remove it from the cache"),
    ),
    (
        "constant labels",
        constant_labels,
        ("the labels of 'valence' are constant", "mend the annotations"),
    ),
    (
        "a missing dimension",
        fit_toy(data__dimensions='["valence", "dominance"]'),
        (
            "no recording of corpus 'toy' has annotation 'dominance'; there is arousal, valence: ",
            "mend data.dimensions or put ratings beside the recordings as data/README.md shows",
        ),
    ),
    (
        "no annotations",
        unrated,
        (
            "no recording of corpus 'toy' has annotation 'valence'; there is none at all: ",
            ": put ratings beside the recordings as data/README.md shows",
        ),
    ),
    (
        "other action units",
        predicts(other_units),
        ("recording toy/P0/1 has no action unit 'AU01_r'", "it has AU06_r, AU17_r, AU25_r"),
    ),
    (
        "runs with different test subjects",
        other_test_subjects,
        ("AT/runs/toy/", "cannot be compared with", "its test subjects differ"),
    ),
    (
        "runs with different gold standards",
        compares_with_another_gold_standard,
        ("AT/runs/toy/", "cannot be compared with", "its data.gold_standard is mean, not avec"),
    ),
    # folders and disks that cannot be written
    (
        "a report that cannot be written",
        compares_below_a_file,
        ("cannot write AT/file/report.html", "choose another folder"),
    ),
    (
        "a cache that cannot be written",
        below_a_file("synth", "--subjects", 1, "--seconds", 5, "--cache"),
        ("cannot write AT/file/folder/synthetic/P01/1.h5", "choose another folder"),
    ),
    (
        "a folder of runs that cannot be written",
        runs_below_a_file,
        ("cannot write to AT/file/runs/toy/", "choose another folder"),
    ),
    (
        "predictions that cannot be written",
        predicts_below_a_file,
        ("cannot write AT/file/out.csv", "choose another folder"),
    ),
    ("a disk full at import", import_to_a_full_disk, ("AT/cache/recola/P16/P16.h5", UNSYNCED)),
    ("a disk full before fit", fit_on_a_full_disk(0), ("cannot write AT/runs/toy/", UNSYNCED)),
    ("a disk full during fit", fit_on_a_full_disk(4), ("cannot write AT/runs/toy/", UNSYNCED)),
    ("a disk full at fit's end", fit_on_a_full_disk(5), ("cannot write AT/runs/toy/", UNSYNCED)),
    ("a disk full at predict", predict_to_a_full_disk, ("cannot write AT/out.csv", UNSYNCED)),
    # names
    ("an unknown command", fixed("fitt"), ("unknown command 'fitt'", "did you mean 'fit'?")),
    ("an unknown flag", fixed("info", "AT", "--x"), ("arguments: --x", "see `affect info --help`")),
    ("an unknown format", imports("recolla"), ("'recolla'", "'recola', 'avec'")),
    (
        "an unknown format of the source",
        fit_toy(data__source__format="synthetics"),
        ("unknown format 'synthetics'", "synthetic"),
    ),
    (
        "an unknown option of a format",
        imports("recola", "--option", "feature=all"),
        ("format 'recola' has no option 'feature'", "did you mean 'features'?"),
    ),
    (
        "an option that is no pair",
        imports("recola", "--option", "features"),
        ("--option takes KEY=VALUE, not 'features'",),
    ),
    (
        "an unknown option of the synthetic corpus",
        fit_toy(data__source__format="synthetic", data__source__options='{"people": 3}'),
        ("format 'synthetic' has no option 'people'", "subjects"),
    ),
    (
        "an option of the synthetic corpus of the wrong type",
        fit_toy(data__source__format="synthetic", data__source__options='{"subjects": "x"}'),
        ("subjects", "'x'"),
    ),
    ("an unknown model", fit_toy(model__name="bilstn"), ("'bilstn'", "did you mean 'bilstm'?")),
    (
        "an unknown option of a model",
        fit_toy(model__options='{"project": 3}'),
        ("model 'bilstm' has no option 'project'", "did you mean 'projection'?"),
    ),
    (
        "an unknown key",
        fit_toy(model__layrs=3),
        ("unknown key 'model.layrs'", "did you mean 'model.layers'?"),
    ),
    ("a value of the wrong type", fit_toy(model__layers="x"), ("model.layers", "int", "x")),
    (
        "more threads than cores",
        fit_toy(trainer__threads=100_000),
        ("trainer.threads is 100000, and there are ", " cores here: give at most"),
    ),
    (
        "more loaders than cores",
        fit_toy(data__workers=100_000),
        ("data.workers is 100000, and there are ", " cores here"),
    ),
    (
        "more threads of a site than cores",
        lambda p: [
            "site",
            *(f"--{x}={p.at}" for x in SITE),
            "--name=a",
            "--threads=100000",
        ],
        ("--threads is 100000, and there are ",),
    ),
    (
        "nothing left to score",
        fit_toy(data__split__calibration_fraction=0.99),
        ("has 60 points", "data.split.calibration_fraction 0.99 leaves 1 to score: lower it"),
    ),
    ("a value out of range", fit_toy(model__layers=0), ("model.layers must be at least 1",)),
    (
        "an environment variable that is not set",
        without_haines_csv,
        ("needs the environment variable HAINES_CSV", "export HAINES_CSV=...", "as a flag"),
    ),
    # devices
    ("an absent device", lambda p: ["test", p.run, "--device", "xpu:7"], ("'xpu:7'", "or cpu")),
    ("an unknown device", predicts(toy, "--device", "quantum"), ("'quantum'", "or cpu")),
    (
        "an unknown accelerator",
        fit_toy(trainer__accelerator="quantum"),
        ("trainer.accelerator", "'quantum'", "cpu"),
    ),
    ("an absent accelerator", fit_toy(trainer__accelerator="mps"), ("trainer.accelerator", "mps")),
    ("an unknown precision", fit_toy(trainer__precision="7-bit"), ("trainer.precision", "7-bit")),
    ("an unknown strategy", fit_toy(trainer__strategy="solo"), ("trainer.strategy", "solo")),
    # runs
    ("test of no run", on_no_run("test"), ("no run at AT/no-run", "holds run.json")),
    ("compare of no run", on_no_run("compare"), ("no run at AT/no-run", "holds run.json")),
    ("federate of nothing", fixed("federate"), ("federate needs an experiment: give -c",)),
    (
        "an unknown strategy",
        federate_toy(federation__strategy__name="fedbest"),
        ("federation.strategy.name", "'fedavg', 'fedavgm'", "fedbest"),
    ),
    ("an unknown engine", federate_toy(federation__engine="cloud"), ("federation.engine", "cloud")),
    ("no round", federate_toy(federation__rounds=0), ("federation.rounds must be at least 1",)),
    (
        "an epsilon without privacy",
        federate_toy(federation__privacy__epsilon=3),
        ("federation.privacy.mode must be central or local",),
    ),
    (
        "a client without an optimiser",
        federate_toy(federation__optimizer__lr=0),
        ("federation.optimizer.lr must be above 0",),
    ),
    (
        "more clients than there are",
        federate_toy(federation__clients_per_round=50),
        ("federation.clients_per_round is 50, there are 3 training clients",),
    ),
    (
        "a client with too little for an estimated delay",
        federate_short,
        ("auto takes two training clients with recordings of more than 8 s", "give the delay"),
    ),
    ("resume of no federated run", on_no_run("federate", "--resume"), ("no run at AT/no-run",)),
    ("resume of no run", on_no_run("fit", "--resume"), ("no run at AT/no-run", "holds run.json")),
    (
        "predict with no run",
        lambda place: [*on_no_run("predict")(place), place.cache, "--out", place.at / "out.csv"],
        ("no run at AT/no-run", "holds run.json"),
    ),
    ("a run.json that is none", broken_run("run.json", "test"), ("AT/run/run.json is not JSON",)),
    (
        "a run.json without bytes",
        recorded(bytes_sent=None),
        ("AT/run/run.json lacks 'bytes_sent'",),
    ),
    (
        "a run.json without memory",
        recorded(peak_memory_mib=None),
        ("AT/run/run.json lacks 'peak_memory_mib'",),
    ),
    (
        "a federation that is none",
        recorded(federation={"0": 5}),
        ("AT/run/run.json has an odd 'federation'",),
    ),
    (
        "a federation of text",
        recorded(federation="x"),
        ("AT/run/run.json has an odd 'federation'",),
    ),
    ("splits that are none", recorded(splits=[1]), ("AT/run/run.json has an odd 'splits'",)),
    ("other folds than splits", recorded(folds=[3]), ("AT/run/run.json has an odd 'folds'",)),
    (
        "a table without columns",
        edited("metrics.csv", lambda _: "\n", "compare"),
        ("cannot read AT/run/metrics.csv",),
    ),
    (
        "a table of other columns",
        edited("metrics.csv", lambda _: "a\n1\n", "compare"),
        ("AT/run/metrics.csv has no column 'fold' with numbers",),
    ),
    (
        "a table without rows",
        edited("metrics.csv", lambda text: text.splitlines()[0] + "\n", "compare"),
        ("AT/run/metrics.csv has no rows",),
    ),
    (
        "a score of text",
        edited("metrics.csv", lambda text: re.sub(r"[^,\n]+\n$", "much\n", text), "compare"),
        ("AT/run/metrics.csv has text among the numbers of column",),
    ),
    (
        "too many resamples",
        lambda place: ["compare", place.run, "--resamples", 10**11],
        ("100000000000 resamples: take from 1 to 100000",),
    ),
    (
        "a network that is truncated",
        broken_run("model.safetensors", "test"),
        ("AT/run", "model.safetensors"),
    ),
    (
        "a preparation that is truncated",
        broken_run("preparation.json", "test"),
        ("AT/run", "preparation.json"),
    ),
    (
        "predictions that are truncated",
        broken_run("predictions.h5", "compare"),
        ("AT/run/predictions.h5", "truncated"),
    ),
    (
        "a checkpoint that is truncated",
        broken_run("checkpoints/last.ckpt", "fit", "--resume"),
        ("AT/run/checkpoints/last.ckpt",),
    ),
    # experiment files
    ("a YAML file of text", experiment_file(b"hello"), ("AT/experiment.yaml",)),
    ("a YAML file of a list", experiment_file(b"- a\n- b\n"), ("AT/experiment.yaml",)),
    ("a broken YAML file", experiment_file(b"name: [x\n"), ("AT/experiment.yaml", "line 2")),
    ("a binary YAML file", experiment_file(b"\x89PNG\xff"), ("AT/experiment.yaml",)),
    ("a number for a section", experiment_file(b"data: 3\n"), ("AT/experiment.yaml", "data")),
    ("no YAML file", fixed("fit", "-c", "AT/none.yaml"), ("AT/none.yaml", "does not exist")),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, trained on the toy corpus."""
    place = Place(tmp_path_factory.mktemp("finished"), Path(), pytest.MonkeyPatch())
    assert main([str(argument) for argument in fit_toy()(place)]) == 0
    (folder,) = (place.at / "runs" / "toy").iterdir()
    return folder


def held(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_behind(before, folder):
    """What a mistake must not leave: temporary files, recordings, results, runs called done."""
    new = [path for path, content in held(folder).items() if before.get(path) != content]
    for path in new:
        done = path.name == "run.json" and json.loads(path.read_text())["status"] == "done"
        if done or path.suffix in {".tmp", ".h5"} or path.name == "out.csv":
            yield path


@pytest.mark.parametrize(
    ("set_up", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
    set_up, expected, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = set_up(Place(tmp_path, finished, monkeypatch))
    before = held(tmp_path)
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    lines = re.split(r"[\r\n]+", err)
    errors = [line for line in lines if line.startswith("affect: error: ")]
    assert (status, out, len(errors)) == (2, "", 1), err
    for fragment in expected:
        assert fragment.replace("AT", str(tmp_path)) in err
    assert "Traceback" not in err
    assert list(left_behind(before, tmp_path)) == []
