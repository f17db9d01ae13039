"""Comparisons against a plain NumPy bootstrap over the frames of small hand-written runs."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from affect.config import (
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    ModelConfig,
    PersonalisationConfig,
    SplitConfig,
    StrategyConfig,
    TrackingConfig,
)
from affect.errors import UserError
from affect.report import page
from affect.report.bootstrap import Interval, multiplicities, ratio, replicates
from affect.report.compare import SCORES, compare
from affect.report.comparison_figures import draw_comparison
from affect.report.configuration import differing, unlike
from affect.report.question import answers
from affect.report.table import to_tables
from affect.report.wording import duration, listed, size
from tests.run_folders import FRAMES, changed, lin, predictions, with_gaps, write_run

DIMENSIONS = ("valence", "arousal")
SCORED = {
    "ccc": lin,
    "rmse": lambda x, y: np.sqrt(np.mean((x - y) ** 2)),
    "pearson": lambda x, y: np.corrcoef(x, y)[0, 1],
}


def pairs(items, dimension):
    """Predictions and references of one dimension, where there are labels."""
    x = np.concatenate([item.prediction[:, dimension] for item in items]).astype(np.float64)
    y = np.concatenate([item.reference[:, dimension] for item in items]).astype(np.float64)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def scored(items):
    """Every score of some recordings, from their frames."""
    values = {
        f"test/{name}/{dimension}": score(*pairs(items, column))
        for name, score in SCORED.items()
        for column, dimension in enumerate(DIMENSIONS)
    }
    for column, dimension in enumerate(DIMENSIONS):
        each = [pairs([item], column) for item in items]
        cccs = [lin(x, y) for x, y in each if len(x)]
        values[f"test/ccc_per_recording/{dimension}"] = np.mean(cccs)
    for name in SCORES:
        means = [values[f"test/{name}/{dimension}"] for dimension in DIMENSIONS]
        values[f"test/{name}/mean"] = np.mean(means)
    return values


def looped(items, counts):
    """Each resample's scores, from the concatenated frames of the subjects that are drawn."""
    subjects = sorted({item.subject for item in items})
    rows = [
        scored(
            [
                item
                for subject, times in zip(subjects, row, strict=True)
                for item in [x for x in items if x.subject == subject] * times
            ]
        )
        for row in counts.numpy().astype(int)
    ]
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def percentiles(sample):
    return tuple(np.quantile(sample, [0.025, 0.975]))


# --- numbers ---------------------------------------------------------------------------------


def test_replicates_are_the_scores_of_the_concatenated_frames():
    items = with_gaps(predictions(two=(2,)))
    counts = multiplicities(len(FRAMES), 50, seed=4)
    drawn = replicates(items, counts)
    expected = looped(items, counts)
    assert drawn.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(drawn[key].numpy(), values, rtol=1e-9, atol=1e-9, err_msg=key)


def test_multiplicities_are_those_of_draws_with_replacement():
    counts = multiplicities(6, 4000, seed=0)
    assert (counts.sum(dim=1) == 6).all()
    # a subject's count is binomial(6, 1/6)
    assert counts.mean(dim=0).numpy() == pytest.approx(np.ones(6), abs=0.06)
    assert counts.var(dim=0).numpy() == pytest.approx(np.full(6, 5 / 6), rel=0.1)
    assert torch.equal(counts, multiplicities(6, 4000, seed=0))


def test_intervals_are_percentiles_of_a_plain_bootstrap(tmp_path):
    first, second = predictions(two=(1,)), predictions(0.2, seed=2, two=(1,))
    comparison = compare(
        [write_run(tmp_path / "a", first), write_run(tmp_path / "b", second[::-1])],
        resamples=200,
        seed=3,
    )
    counts = multiplicities(len(FRAMES), 200, seed=3)
    one, other = (looped(items, counts) for items in (first, second))
    runs = comparison.runs
    for key in one:
        for item, sample in (
            (runs[0].scores[key], one[key]),
            (runs[1].scores[key], other[key]),
            (runs[1].differences[key], other[key] - one[key]),
        ):
            assert (item.low, item.high) == pytest.approx(percentiles(sample), abs=1e-9), key
        gap = scored(second)[key] - scored(first)[key]
        assert runs[1].differences[key].value == pytest.approx(gap, abs=1e-9)
    assert runs[0].scores.keys() == runs[1].differences.keys() == one.keys()
    assert runs[0].differences == {}
    assert (comparison.subjects, comparison.recordings) == (5, 6)


def test_scores_are_those_of_all_test_frames_and_of_no_others(tmp_path):
    tested = predictions()
    run = write_run(tmp_path, [*predictions(9.0, split="val"), *tested])
    standing = compare([run], resamples=20).runs[0]
    values = {key: item.value for key, item in standing.scores.items()}
    assert values == pytest.approx(scored(tested), abs=1e-9)


def test_a_share_is_that_of_the_mean_over_seeds(tmp_path):
    """Two federated seeds against two centralised ones, by hand."""
    tests = [predictions(0.3, seed=seed) for seed in range(4)]
    kinds = ("fit", "federate", "fit", "federate")
    made = [
        write_run(tmp_path, items, kind=kind, seed=place)
        for place, (items, kind) in enumerate(zip(tests, kinds, strict=True))
    ]
    comparison = compare(made, resamples=100, seed=1)
    (found,) = comparison.ratios
    assert (found.federated, found.centralised, found.besides) == ((1, 3), (0, 2), ())
    counts = multiplicities(len(FRAMES), 100, seed=1)
    drawn = [looped(items, counts) for items in tests]
    points = [scored(items) for items in tests]
    for name in (*DIMENSIONS, "mean"):
        key = f"test/ccc/{name}"
        share = (points[1][key] + points[3][key]) / (points[0][key] + points[2][key])
        sample = (drawn[1][key] + drawn[3][key]) / (drawn[0][key] + drawn[2][key])
        assert found.ccc[name].value == pytest.approx(share, abs=1e-9)
        assert (found.ccc[name].low, found.ccc[name].high) == pytest.approx(percentiles(sample))


def test_a_share_of_nothing_is_none():
    drawn = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    assert np.isnan(ratio((0.5, 0.0), (drawn, drawn)).value)
    crossing = ratio((0.5, 0.25), (drawn, drawn - 0.45))
    assert crossing.value == 2
    assert np.isnan([crossing.low, crossing.high]).all()


def test_runs_that_predict_the_same_differ_by_exactly_nothing(tmp_path):
    items = with_gaps(predictions())
    shuffled = [items[index] for index in (3, 1, 4, 0, 2)]
    pair = [write_run(tmp_path / "a", items), write_run(tmp_path / "b", shuffled)]
    standing = compare(pair, resamples=100).runs[1]
    assert set(standing.differences.values()) == {Interval(0.0, 0.0, 0.0)}


def test_a_better_run_has_a_difference_above_zero(tmp_path):
    pair = [
        write_run(tmp_path / "a", predictions(1.0)),
        write_run(tmp_path / "b", predictions(0.05)),
    ]
    differences = compare(pair, resamples=100).runs[1].differences
    higher, lower = differences["test/ccc/mean"], differences["test/rmse/mean"]
    assert 0 < higher.low < higher.value < higher.high
    assert lower.low < lower.value < lower.high < 0


# --- what is told ----------------------------------------------------------------------------


def test_a_run_tells_what_it_cost(tmp_path):
    items = predictions(folds=2)
    central = write_run(tmp_path / "a", items, folds=2)
    options = {"folds": 2, "kind": "federate", "epochs": 9, "spent": [2.5, 7.5]}
    private = write_run(tmp_path / "b", items, **options)
    one, other = compare([central, private], resamples=10).runs
    assert (one.kind, one.model, one.trained) == ("fit", "bilstm", (6, 6))
    assert (one.bytes_sent, one.bytes_received, one.epsilon, one.delta) == (0, 0, None, None)
    assert (one.wall_time_s, one.peak_memory_mib) == (12.5, 800.0)
    assert (other.trained, other.epsilon, other.delta) == ((9, 9), 7.5, 0.02)
    assert (other.bytes_sent, other.bytes_received) == (5_000_000, 7_000_000)


def test_one_subject_has_no_interval_and_json_no_nan(tmp_path):
    comparison = compare([write_run(tmp_path, predictions(frames=(40,)))], resamples=10)
    assert np.isnan(comparison.runs[0].scores["test/ccc/mean"].low)
    values = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    found = values["runs"][0]["scores"]["test/ccc/mean"]
    assert found["low"] is None
    assert found["value"] == comparison.runs[0].scores["test/ccc/mean"].value
    assert values["dimensions"] == ["valence", "arousal"]
    assert values["runs"][0]["epsilon"] is None


def test_tables_have_a_row_a_run_and_fit_a_terminal(tmp_path):
    made = [
        write_run(tmp_path / "a", predictions(), name="first"),
        write_run(tmp_path / "b", predictions(seed=2), name="[b]second", kind="federate"),
    ]
    comparison = compare(made, resamples=50)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(to_tables(comparison))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    for key in ("test/ccc/mean", "test/rmse/valence"):
        better, first = comparison.runs[1].differences[key], comparison.runs[0].scores[key]
        for shown in (f"{first.low:.3f}…{first.high:.3f}", f"{better.value:+.3f}"):
            assert any(shown in cells for cells in lines), shown
    for shown in ("[b]second", "5 test subjects", "6 epochs", "6 rounds", "5 MB", "by recording"):
        assert shown in text
    assert sum(cells[:3] == ["2", "-", "1"] for cells in lines) == len(SCORES)
    assert all(run.id in text for run in comparison.runs)
    assert " ".join(answers(comparison)[0].split()) in " ".join(text.split())


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    items = predictions()
    made = [
        write_run(tmp_path, items, name=name, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("b", 1), ("c", 2), ("c", 2))
    ]
    *names, fourth, fifth = compare(made, resamples=5).labels
    assert names == ["a", "b, seed 0", "b, seed 1"]
    assert [fourth, fifth] == [f"c/{run.record['id']}" for run in made[3:]]


def sentences(tmp_path, *specified):
    """The answers for runs of these kinds, errors and settings."""
    made = [
        write_run(tmp_path, predictions(noise), kind=kind, **settings)
        for kind, noise, settings in specified
    ]
    return answers(compare(made, resamples=200))


def test_the_answer_says_what_the_interval_says(tmp_path):
    central = ("fit", 0.4, {"name": "central"})
    (worse,) = sentences(tmp_path, central, ("federate", 2.0, {"name": "far"}))
    assert worse.startswith("Federated training (far) reaches ")
    assert "of the test CCC of centralised training (central)" in worse
    assert "which lies below 100 %; valence " in worse
    (better,) = sentences(tmp_path, ("federate", 0.05, {}), ("fit", 0.4, {}))
    assert "which lies above 100 %" in better
    (same,) = sentences(tmp_path, central, ("federate", 0.4, {}))
    assert "reaches 100.0 % of" in same
    assert "100.0 % to 100.0 %, which includes 100 %" in same


def test_there_is_an_answer_for_each_federated_experiment(tmp_path):
    average = ("federate", 0.4, {"name": "average"})
    again = ("federate", 0.4, {"name": "average", "seed": 3})
    adaptive = {"federation": FederationConfig(strategy=StrategyConfig("fedadam"))}
    wide = ("federate", 0.4, {"name": "wide", "model": ModelConfig(hidden_size=99), **adaptive})
    first, second = sentences(tmp_path, average, ("fit", 0.4, {}), again, wide)
    assert "(average, mean of 2 runs)" in first
    assert "differ" not in first
    assert second.endswith("; they also differ in model.hidden_size.")
    assert sentences(tmp_path, average, again) == []
    assert sentences(tmp_path, ("fit", 0.4, {})) == []


def test_the_answer_tells_runs_apart_that_adapted_to_people(tmp_path):
    data = DataConfig(split=SplitConfig(calibration_fraction=0.2))
    ways = {
        "plain": PersonalisationConfig(),
        "tuned": PersonalisationConfig(steps=10),
        "fedper": PersonalisationConfig("head", steps=5, tune="head"),
    }
    runs = [
        ("federate", 0.4, {"name": name, "data": data, "federation": FederationConfig(**given)})
        for name, given in ((name, {"personalisation": way}) for name, way in ways.items())
    ]
    plain, tuned, fedper = sentences(tmp_path, ("fit", 0.4, {"data": data}), *runs)
    assert plain.startswith("Federated training (plain) reaches ")
    labels = "on the first 20% of a person's labels"
    assert f"(tuned; personalised: 10 steps of the network {labels}) reaches" in tuned
    said = f"(fedper; personalised: 5 steps of the head {labels}, a head of each client's own) "
    assert said in fedper


def test_a_centralised_run_of_no_use_allows_no_share(tmp_path):
    items = predictions()
    inverted = [dataclasses.replace(item, prediction=-item.reference) for item in items]
    made = [write_run(tmp_path, inverted), write_run(tmp_path, items, kind="federate")]
    (said,) = answers(compare(made, resamples=20))
    assert "which allows no share" in said


def test_configurations_differ_in_the_keys_that_runs_read(tmp_path):
    items = predictions()
    plain = write_run(tmp_path, items, federation=FederationConfig(rounds=7))  # which fit ignores
    tracking = TrackingConfig(tags=["x"])
    other = write_run(tmp_path, items, name="b", seed=4, tracking=tracking)
    federated = write_run(
        tmp_path,
        items,
        kind="federate",
        federation=FederationConfig(rounds=12, strategy=StrategyConfig("fedprox")),
    )
    assert differing([plain, plain]) == {}
    assert differing([plain, other]) == {"seed": ("0", "4"), "tracking.tags": ("[]", '["x"]')}
    assert differing([plain, federated]) == {
        "federation.rounds": ("", "12"),
        "federation.strategy.name": ("", "fedprox"),
    }
    assert unlike(plain, other) == unlike(plain, federated) == ()


def test_numbers_are_worded_with_their_units():
    assert [size(n) for n in (0, 999, 1000, 1234567, 5e9)] == [
        *("0 B", "999 B", "1 kB", "1.23 MB", "5 GB")
    ]
    assert [duration(s) for s in (0.04, 59.94, 59.96, 61, 3599.6, 7380)] == [
        *("0.0 s", "59.9 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 03 min")
    ]
    assert [listed(names) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


# --- what is refused -------------------------------------------------------------------------


def relabelled(items):
    """The predictions with one label of the last recording moved."""
    reference = items[-1].reference.copy()
    reference[3, 0] += 0.01
    return changed(items, len(items) - 1, reference=reference)


REFUSED = {
    "subjects": (predictions(frames=FRAMES[:4]), {}, "test subjects differ: it lacks toy/P4$"),
    "corpora": (
        [dataclasses.replace(item, corpus="other") for item in predictions()],
        {},
        "it alone has other/P0, other/P1, other/P2 and 2 more; it lacks toy/P0",
    ),
    "recordings": (predictions(two=(1,)), {}, "test recordings differ: it alone has toy/P1/2$"),
    "references": (
        relabelled(predictions()),
        {},
        r"references of toy/P4/1 differ \(51 points and 51",
    ),
    "lengths": (predictions(frames=(12, *FRAMES[1:])), {}, r"toy/P0/1 differ \(12 points and 40"),
    "dimensions": (
        [dataclasses.replace(item, dimensions=("valence", "power")) for item in predictions()],
        {},
        "predicts valence, power, not valence, arousal$",
    ),
    "no test": (predictions(split="val"), {}, "no test predictions"),
    "gold standard": (
        predictions(),
        {"data": DataConfig(gold_standard="mean")},
        "its data.gold_standard is mean, not avec$",
    ),
    "target": (
        predictions(),
        {"data": DataConfig(target="window_mean", window_frames=20)},
        "its data.target is window_mean, not frame$",
    ),
    "calibration": (
        predictions(),
        {"data": DataConfig(split=SplitConfig(calibration_fraction=0.2))},
        r"its data.split.calibration_fraction is 0\.2, not 0\.0$",
    ),
    "folds": (predictions(), {"folds": 2}, "it has 2 folds, not 1$"),
    "training subjects": (
        predictions(),
        {"split": (("a", "d"), ("b",), ("c",))},
        "its train subjects of fold 0 differ: it alone has d$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_were_tested_otherwise_are_refused(tmp_path, case):
    items, settings, message = REFUSED[case]
    first = write_run(tmp_path / "a", predictions())
    other = write_run(tmp_path / "b", items, **settings)
    with pytest.raises(UserError, match=message) as caught:
        compare([first, first, other], resamples=10)
    assert str(other.folder) in str(caught.value)


def test_windows_are_of_the_protocol_where_they_are_scored(tmp_path):
    made = [
        write_run(tmp_path, predictions(), data=DataConfig(target=target, window_frames=frames))
        for target in ("frame", "window_mean")
        for frames in (20, 30)
    ]
    compare(made[:2], resamples=5)
    with pytest.raises(UserError, match=r"its data\.window_frames is 30, not 20$"):
        compare(made[2:], resamples=5)


def test_treatments_may_differ(tmp_path):
    data = DataConfig(features=["AU12_r"], standardise=["train"], delay_s=2.0, window_frames=40)
    settings = {"data": data, "evaluation": EvaluationConfig(postprocess=["median"])}
    made = [write_run(tmp_path, predictions()), write_run(tmp_path, predictions(), **settings)]
    assert len(compare(made, resamples=5).runs) == 2


def test_missing_labels_are_no_difference_but_a_new_gap_is(tmp_path):
    items = with_gaps(predictions())
    pair = [write_run(tmp_path / "a", items), write_run(tmp_path / "b", items)]
    compare(pair, resamples=10)
    with pytest.raises(UserError, match="references of toy/P0/1"):
        compare([write_run(tmp_path / "c", predictions()), pair[0]], resamples=10)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_unfinished_runs_are_refused(tmp_path, status):
    run = write_run(tmp_path, predictions(), status=status)
    with pytest.raises(UserError, match=rf"{run.folder} is not finished \({status}\)"):
        compare([run])


def test_no_run_and_no_resample_are_refused(tmp_path):
    with pytest.raises(UserError, match="no runs to compare"):
        compare([])
    with pytest.raises(UserError, match="0 resamples"):
        compare([write_run(tmp_path, predictions())], resamples=0)
    with pytest.raises(UserError, match="100000000000 resamples: take from 1 to 100000"):
        compare([write_run(tmp_path, predictions())], resamples=100_000_000_000)


# --- deployments -----------------------------------------------------------------------------

TOLD = {"test/ccc/valence": 0.5, "test/ccc/arousal": 0.25, "test/ccc/mean": 0.375}
"""What the moments of a deployment's sites come to."""


def of_sites(folder, people=(1, 1, 1), told=TOLD, **settings):
    """A deployment's run, whose sites have so many people in each part."""
    run = write_run(folder, predictions(), kind="federate", name="sites", **settings)
    (run.folder / "predictions.h5").unlink()
    one = dict(zip(("train", "val", "test"), people, strict=True))
    run.update({"sites": {"north": one, "west": dict.fromkeys(one, 0)}, "metrics": told})
    return run


def test_a_deployment_stands_beside_others_by_its_points(tmp_path):
    here = [write_run(tmp_path, predictions()), write_run(tmp_path, predictions(), kind="federate")]
    made = [*here, of_sites(tmp_path)]
    comparison = compare(made, resamples=20)
    alone = compare(here, resamples=20)
    assert comparison.runs[:2] == alone.runs
    standing = comparison.runs[2]
    known = {key: item.value for key, item in standing.scores.items() if item.value == item.value}
    assert known == TOLD
    assert np.isnan([item.low for item in standing.scores.values()]).all()
    assert standing.differences == {}
    share = comparison.ratios[1].ccc["valence"]
    first = comparison.runs[0].scores["test/ccc/valence"].value
    assert share.value == pytest.approx(0.5 / first)
    assert np.isnan(share.low)
    values = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert values["runs"][2]["scores"]["test/ccc/mean"] == {"value": 0.375, "low": None} | {
        "high": None
    }
    assert "without paired differences" in values["runs"][2]["remark"]
    assert [run["remark"] for run in values["runs"][:2]] == ["", ""]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(to_tables(comparison))
    text = " ".join(console.export_text().split())
    assert "sites was trained at sites that keep their predictions" in text
    page.write(comparison, made, tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text()
    assert "sites was trained at sites that keep their predictions" in written
    assert "deployment/run.sh" in written
    draw_comparison(comparison, tmp_path / "figure.png")


UNLIKE = {
    "people": ({"people": (2, 1, 1)}, "it has 2 train subjects, not 1$"),
    "protocol": ({"data": DataConfig(gold_standard="mean")}, "gold_standard is mean, not avec$"),
    "nothing": ({"told": {"val/ccc/mean": 0.3}}, "has no test scores to compare$"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_a_deployment_of_another_protocol_is_refused(tmp_path, case):
    settings, message = UNLIKE[case]
    with pytest.raises(UserError, match=message):
        compare([write_run(tmp_path, predictions()), of_sites(tmp_path, **settings)], resamples=5)


def test_nothing_is_compared_with_a_deployment(tmp_path):
    made = [of_sites(tmp_path), write_run(tmp_path, predictions())]
    with pytest.raises(UserError, match=r"is a deployment's, .* name first a run of `affect fit`"):
        compare(made, resamples=5)
    folds = write_run(tmp_path, predictions(folds=2), folds=2)
    with pytest.raises(UserError, match=r"it has one fold, not 2$"):
        compare([folds, made[0]], resamples=5)
