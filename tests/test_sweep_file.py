"""Sweep files: W&B's distributions, grids, brackets and commands, and what is refused."""

import datetime
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from affect.errors import UserError
from affect.sweep import command, file
from affect.sweep.distributions import value_at
from affect.sweep.hyperband import Hyperband, from_first, from_last
from affect.sweep.search import asked, proposals
from affect.sweep.space import arguments, digest, drawn, grid, size

SWEEPS = sorted((Path(__file__).parents[1] / "experiments" / "sweeps").glob("*.yaml"))
QUANTILES = st.floats(0.001, 0.999)
WEIGHTED = {"values": [False, True, False], "probabilities": [0.1, 0.8, 0.1]}
BASE = {
    "program": "affect",
    "command": ["affect", "fit", "${args}"],
    "method": "random",
    "metric": {"name": "val/ccc/mean", "goal": "maximize"},
    "parameters": {"optimizer.lr": {"min": 0.001, "max": 0.1}},
}


def parsed(**changes):
    content = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    return file.parse(yaml.safe_dump(content), "sweep.yaml")


def parameter(**settings):
    return parsed(parameters={"x": settings}).space[0]


# --- distributions, against SciPy's -----------------------------------------------------------

LIMITS = {"min": 0.5, "max": 4.0}
CONTINUOUS = {
    "uniform": (LIMITS, stats.uniform(0.5, 3.5)),
    "log_uniform": (LIMITS, stats.loguniform(np.exp(0.5), np.exp(4.0))),
    "log_uniform_values": (LIMITS, stats.loguniform(0.5, 4.0)),
    "normal": ({"mu": 2.0, "sigma": 3.0}, stats.norm(2.0, 3.0)),
    "log_normal": ({"mu": 0.3, "sigma": 0.7}, stats.lognorm(s=0.7, scale=np.exp(0.3))),
    "beta": ({"a": 2.0, "b": 5.0}, stats.beta(2.0, 5.0)),
}


@pytest.mark.parametrize("kind", CONTINUOUS)
@given(quantile=QUANTILES)
def test_a_share_of_the_distribution_lies_below_its_quantile(kind, quantile):
    settings, oracle = CONTINUOUS[kind]
    value = parameter(distribution=kind, **settings).value(quantile)
    assert oracle.cdf(value) == pytest.approx(quantile, abs=1e-9)


@pytest.mark.parametrize("kind", CONTINUOUS)
@given(quantile=QUANTILES, q=st.sampled_from([1, 2, 0.25]))
def test_a_quantised_value_is_the_multiple_next_to_the_value_itself(kind, quantile, q):
    settings, oracle = CONTINUOUS[kind]
    value = parameter(distribution=f"q_{kind}", q=q, **settings).value(quantile)
    assert value / q == pytest.approx(round(value / q))
    assert abs(value - oracle.ppf(quantile)) <= q / 2 * (1 + 1e-6)
    assert isinstance(value, int if isinstance(q, int) else float)


@given(quantile=QUANTILES)
def test_the_inverse_of_a_value_is_log_uniform(quantile):
    value = parameter(distribution="inv_log_uniform", min=0.5, max=4.0).value(quantile)
    oracle = stats.loguniform(np.exp(0.5), np.exp(4.0))
    assert oracle.sf(1 / value) == pytest.approx(quantile, abs=1e-9)
    value = parameter(distribution="inv_log_uniform_values", min=0.5, max=4.0).value(quantile)
    assert stats.loguniform(1 / 4.0, 1 / 0.5).sf(1 / value) == pytest.approx(quantile, abs=1e-9)


@given(quantile=QUANTILES, low=st.integers(-5, 5), count=st.integers(2, 9))
def test_integers_are_equally_likely(quantile, low, count):
    drawn_value = value_at("int_uniform", {"min": low, "max": low + count - 1}, quantile)
    assert drawn_value == pytest.approx(stats.randint(low, low + count).ppf(quantile), abs=1)
    found = [value_at("int_uniform", {"min": low, "max": low + count - 1}, (i + 0.5) / count)
             for i in range(count)]  # fmt: skip
    assert found == list(range(low, low + count))


def test_choices_come_as_often_as_their_probabilities():
    weights = {"values": ["a", "b", "c"], "probabilities": [0.2, 0.5, 0.3]}
    even = parameter(values=["a", "b", "c", "d"])
    quantiles = (np.arange(1000) + 0.5) / 1000
    drawn_values = [parameter(**weights).value(u) for u in quantiles]
    assert [drawn_values.count(name) for name in "abc"] == [200, 500, 300]
    found = [even.value(even.coordinate(u)) for u in quantiles]
    assert [found.count(name) for name in "abcd"] == [250] * 4


def test_unbounded_distributions_stay_finite_at_their_ends():
    for kind in ("normal", "log_normal"):
        ends = [parameter(distribution=kind).value(quantile) for quantile in (0.0, 1.0)]
        assert np.isfinite(ends).all()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"value": 3}, "constant"),
        ({"values": [1, 2]}, "categorical"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "categorical_w_probabilities"),
        ({"min": 1, "max": 3}, "int_uniform"),
        ({"min": 1, "max": 3.0}, "uniform"),
    ],
)
def test_a_distribution_without_a_name_is_what_wandb_takes(settings, kind):
    assert parameter(**settings).kind == kind


# --- configurations ----------------------------------------------------------------------------


def test_a_grid_has_each_configuration_once():
    sweep = parsed(
        method="grid",
        parameters={
            "b": {"values": [1, 2, 2]},
            "a": {"parameters": {"y": {"min": 0, "max": 2}, "x": {"value": "fixed"}}},
            "c": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.5},
        },
    )
    found = [arguments(sweep.space, point) for point in grid(sweep.space)]
    expected = [
        {"a": {"x": "fixed", "y": y}, "b": b, "c": c}
        for y in (0, 1, 2) for b in (1, 2) for c in (0.0, 0.5)
    ]  # fmt: skip
    assert found == expected
    assert size(sweep.space) == len(expected) == len({digest(item) for item in found})


def test_random_draws_are_the_same_again_and_differ_by_trial():
    sweep = parsed()
    first, again, other = (next(proposals(sweep, 0, number, [])) for number in (3, 3, 4))
    assert first == again != other


def test_bayesian_search_prefers_what_was_good():
    pytest.importorskip("optuna")
    from affect.sweep.search import Tried

    sweep = parsed(method="bayes", parameters={"x": {"min": 0.0, "max": 1.0}})
    tried = [Tried({"x": u}, "done", -((u - 0.8) ** 2), 1) for u in np.linspace(0, 1, 30)]
    tried += [Tried({"x": 0.5}, "failed"), Tried({"x": 0.1}, "stopped", -0.5, 3)]
    found = [asked(sweep, [0, number], tried)["x"] for number in range(8)]
    assert np.median(np.abs(np.array(found) - 0.8)) < 0.15
    assert asked(sweep, [0, 1], tried) == asked(sweep, [0, 1], tried)


# --- Hyperband ---------------------------------------------------------------------------------


def test_brackets_are_those_of_wandbs_documentation():
    assert from_first(3, 3)[:4] == (3, 9, 27, 81)
    assert from_last(27, 2, 3) == (3, 9)
    assert from_last(5, 2, 2) == (1, 2)


# the histories of the example that W&B's engine gives of `hyperband_stop_runs`
LOSSES = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}


@pytest.mark.parametrize(("strict", "stopped"), [(False, {"a", "b"}), (True, {"a", "b"})])
def test_the_best_of_a_bracket_go_on(strict, stopped):
    rule = Hyperband(from_last(5, 2, 2), 2.0, strict)
    everyone = list(LOSSES.values())
    assert {name for name, losses in LOSSES.items() if rule.stops(losses, everyone)} == stopped
    assert not rule.stops([], everyone)


def test_strictness_looks_at_the_bracket_and_leniency_at_the_best():
    everyone = [[5.0, 5.0, 1.0], [5.0, 2.0], [5.0, 3.0], [5.0, 4.0]]
    assert Hyperband((2,), 2.0, strict=True).stops(everyone[0], everyone)
    assert not Hyperband((2,), 2.0, strict=False).stops(everyone[0], everyone)


# --- commands, against W&B's own agent ---------------------------------------------------------


@pytest.mark.parametrize(
    "macro", ["args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_json",
              "args_append_hydra", "args_override_hydra"],
)  # fmt: skip
def test_a_command_is_what_wandbs_agent_makes_of_it(macro):
    from wandb.sdk.launch.sweeps import utils

    configuration = {"a.b": 0.1, "c": {"d": [1, "x"]}, "e": True, "f": False, "g": None}
    nested = {"args": {name: {"value": value} for name, value in configuration.items()}}
    oracle = utils.create_sweep_command_args(nested)[macro]
    assert command.expand(["run", f"${{{macro}}}"], "p", configuration) == ["run", *oracle]


def test_environment_and_program_are_filled_in(monkeypatch):
    monkeypatch.setenv("FOLDER", "here")
    words = ["${env}", "${interpreter}", "${program}", "${envvar:FOLDER}/x", "${args_json_file}"]
    assert command.expand(words, "p", {}, "f.json") == [
        *("/usr/bin/env", "python", "p", "here/x", "f.json")
    ]


def test_a_trial_never_reads_the_test():
    first = parsed()
    assert "--evaluation.test=false" in command.command_of(first, {"optimizer.lr": 0.01}).flags
    assert not command.checked(first).evaluation.test
    with pytest.raises(UserError, match=re.escape("leave evaluation.test out")):
        command.checked(parsed(command=["affect", "fit", "--evaluation.test=true", "${args}"]))
    for test in ({"evaluation.test": WEIGHTED}, {"evaluation": {"parameters": {"test": WEIGHTED}}}):
        with pytest.raises(UserError, match=re.escape("leave evaluation.test out")):
            command.checked(parsed(parameters=test))


@pytest.mark.parametrize(
    "values",
    [
        {"values": ["ccc", "nosuch", "mse"], "probabilities": [0.1, 0.8, 0.1]},
        {"values": [*(["ccc"] * 30), "nosuch", "mse"]},
    ],
)
def test_every_value_of_a_list_is_looked_at(values):
    with pytest.raises(UserError, match="nosuch"):
        command.checked(parsed(parameters={"loss.name": values}))


def test_of_listed_numbers_the_ends_are_looked_at():
    listed = parameter(values=[3, 0.5, "a", 7, 2, True, 0.25, "a", 9, 4])
    assert [listed.value(place) for place in listed.probes] == [0.5, "a", 2, True, 0.25, 9]
    for values in ([1, 2, 0, 3], [0.1, 0.2, 1.5, 0.3], [0.1, 2]):
        with pytest.raises(UserError, match=r"model\.(layers|dropout)"):
            key = "model.layers" if isinstance(values[0], int) else "model.dropout"
            command.checked(parsed(parameters={key: {"values": values}}))


def test_the_far_tails_of_a_distribution_may_be_of_no_use():
    normal = {"distribution": "normal", "mu": 0.3, "sigma": 0.05}
    command.checked(parsed(parameters={"model.dropout": normal}))
    with pytest.raises(UserError, match=r"model\.dropout"):
        command.checked(parsed(parameters={"model.dropout": {**normal, "sigma": 0.4}}))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "custom"}, "unknown method 'custom': choose one of grid, random, bayes"),
        ({"method": None}, "unknown method None"),
        ({"parameters": None}, "parameters must hold keys and values"),
        ({"parameters": {}}, "parameters is empty"),
        ({"metrics": [1, 2]}, "metrics is not supported: a sweep here has one metric"),
        ({"job": "j"}, "job is not supported: W&B Launch"),
        ({"scheduler": {}}, "scheduler is not supported"),
        ({"parameter": {}}, "parameter is not supported: did you mean 'parameters'?"),
        ({"metric": {"name": "val/ccc/mean", "impute": "worst"}}, "metric.impute is not supported"),
        ({"metric": {"goal": "maximize"}}, "metric needs a name"),
        ({"metric": {"name": "x", "goal": "up"}}, "metric.goal must be minimize or maximize"),
        ({"metric": {"name": "x", "target": "no"}}, "metric.target must be a number"),
        ({"run_cap": 0}, "run_cap must be a whole number above 0"),
        ({"command": "affect fit"}, "command must be a list of words"),
        ({"early_terminate": {"type": "median"}}, "'median' is not supported: choose hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "max_iter needs s"),
        (
            {"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}},
            "has no bracket",
        ),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta must be"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1.0000001}}, "eta must"),
        ({"name": ["a"]}, "name must be a text, not ['a']"),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": "yes"}},
            "early_terminate.strict must be true or false, not 'yes'",
        ),
        ({"early_terminate": {"type": "hyperband", "min": 1}}, "early_terminate.min is not"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parsed(**changes)
    assert str(caught.value).startswith("sweep.yaml: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "x: give value, values, min and max, or a distribution"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "did you mean 'uniform'?"),
        ({"distribution": "uniform", "min": 0}, "x: uniform needs max"),
        ({"distribution": "uniform", "min": 0, "max": 1, "q": 1}, "uniform: q is not supported"),
        ({"min": 2, "max": 1}, "x: min 2 is not below max 1"),
        ({"min": "a", "max": 1}, "x: min must be a number"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 1}, "must be whole numbers"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "must be above 0"),
        ({"distribution": "normal", "sigma": -1}, "x: sigma must be 0 or more"),
        ({"distribution": "q_normal", "q": 0}, "x: q must be above 0"),
        ({"distribution": "beta", "a": 0}, "x: a must be above 0"),
        ({"values": []}, "x: values must be a list, not empty"),
        ({"values": [1, 2], "probabilities": [1.0]}, "2 values have 1 probabilities"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "must sum to 1"),
        ({"values": [1], "probabilities": [-1]}, "numbers of 0 or more"),
        ({"parameters": {"y": {"value": 1}}, "value": 2}, "x.value is not supported"),
        ({"min": "1e-5", "max": 1}, "write it with a point, such as 1.0e-5"),
        ({"min": 0, "max": 10**30}, "min and max of int_uniform may be 9007199254740992 at most"),
        ({"distribution": "log_uniform", "min": 0.1, "max": 1000}, "log_uniform_values takes"),
        ({"distribution": "q_log_uniform", "min": 0.1, "max": 1e5}, "are exponents of e"),
        ({"distribution": ["uniform"], "min": 0, "max": 1}, "unknown distribution ['uniform']"),
        ({"values": [datetime.date(2020, 1, 1)]}, "2020-01-01 is no text or number"),
        ({"value": datetime.date(2020, 1, 1)}, "2020-01-01 is no text or number"),
    ],
)
def test_a_parameter_that_cannot_be_searched_is_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parameter(**settings)


def test_the_first_bracket_is_one_at_least():
    rule = parsed(early_terminate={"type": "hyperband", "min_iter": 0.5}).hyperband
    assert rule.brackets[:3] == (1, 3, 9)


def test_a_file_that_has_itself_in_it_is_refused():
    text = "method: random\nparameters: &a {x: {parameters: *a}}\n"
    with pytest.raises(UserError, match="an anchor stands for what it is part of"):
        file.parse(text, "sweep.yaml")


def test_a_command_that_asks_for_help_is_refused():
    with pytest.raises(UserError, match="leave --help out"):
        command.checked(parsed(command=["affect", "fit", "--help"]))


def test_a_grid_refuses_what_has_no_end():
    fine = {"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-9}
    with pytest.raises(UserError, match="a grid of more than 10000 values: raise q"):
        parsed(method="grid", parameters={"x": fine})
    with pytest.raises(UserError, match=r"optimizer\.lr: method grid takes values.*not uniform"):
        parsed(method="grid")


def test_no_yaml_is_refused():
    with pytest.raises(UserError, match=r"cannot read sweep\.yaml"):
        file.parse("a: [", "sweep.yaml")
    with pytest.raises(UserError, match="a sweep file must hold keys and values"):
        file.parse("- 1", "sweep.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parameters": {"optimizer.learning_rate": {"value": 1}}},
            "unknown key 'optimizer.learning_rate'",
        ),
        ({"parameters": {"model.hidden_size": {"min": 0.5, "max": 9.5}}}, "model.hidden_size"),
        ({"parameters": {"model.dropout": {"values": [0.1, 0.2, 1.5]}}}, "model.dropout must be"),
        ({"metric": {"name": "val/cc/mean", "goal": "maximize"}}, "did you mean 'val/ccc/mean'?"),
        ({"metric": {"name": "test/ccc/mean", "goal": "maximize"}}, "is no validation metric"),
        ({"metric": {"name": "val/ccc/mean"}}, "metric.goal of val/ccc/mean must be maximize"),
        ({"metric": {"name": "val/loss/mean", "goal": "maximize"}}, "must be minimize"),
        (
            {
                "metric": {"name": "val/pearson/mean", "goal": "maximize"},
                "early_terminate": {"type": "hyperband", "min_iter": 1},
            },
            "in every epoch, which early_terminate needs",
        ),
        ({"command": ["python", "train.py", "${args}"]}, "affect sweep runs `affect fit` and"),
        ({"command": ["affect", "fit", "${arg}"]}, "unknown macro ${arg}"),
        ({"command": ["affect", "fit", "--tracking.mode=online", "${args}"]}, "keep W&B offline"),
    ],
)
def test_what_no_trial_could_run_is_refused_before_the_first(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        command.checked(parsed(**changes))


# --- the files that are shipped ----------------------------------------------------------------


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_file_can_run(path, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    for name in ("HAINES_CSV", "AVEC2016_HOME"):
        monkeypatch.setenv(name, "data")
    sweep = file.parse(path.read_text(), str(path))
    assert command.checked(sweep).name
    assert sweep.run_cap
    words = command.command_of(sweep, arguments(sweep.space, drawn_middle(sweep))).words
    assert words[:2] == ["/usr/bin/env", "affect"]
    assert words.count("--evaluation.test=false") == 1


def drawn_middle(sweep):
    count = sum(parameter.varies for parameter in sweep.space)
    return drawn(sweep.space, [0.5] * count)


def test_sweeps_are_shipped():
    assert {path.stem for path in SWEEPS} == {"haines", "recola", "federated"}
