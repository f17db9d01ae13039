import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from affect.config import SplitConfig
from affect.data.splits import Fold, split
from affect.errors import UserError

FRAMES = {f"P{index:02d}": 100 + 7 * index for index in range(23)}

corpora = st.dictionaries(st.text("abcXYZ019", min_size=1), st.integers(1, 9999), min_size=4)
kinds = st.sampled_from(["ratio", "kfold", "leave_one_subject_out"])


@settings(deadline=None)
@given(frames=corpora, kind=kinds, seed=st.integers(0, 99), fraction=st.floats(0.05, 0.9))
def test_every_subject_is_in_one_part_of_each_fold(frames, kind, seed, fraction):
    config = SplitConfig(
        kind=kind, folds=3, val_fraction=fraction, test_fraction=fraction, seed=seed
    )
    folds = split(frames, config)
    for fold in folds:
        parts = [set(fold.train), set(fold.val), set(fold.test)]
        assert all(parts)
        assert set.union(*parts) == set(frames)
        assert sum(map(len, parts)) == len(frames)
    if kind != "ratio":
        tested = [subject for fold in folds for subject in fold.test]
        assert sorted(tested) == sorted(frames)


@settings(deadline=None)
@given(frames=corpora, kind=kinds, seed=st.integers(0, 99))
def test_the_order_of_subjects_does_not_matter(frames, kind, seed):
    config = SplitConfig(kind=kind, folds=3, seed=seed)
    backwards = dict(reversed(frames.items()))
    assert split(frames, config) == split(backwards, config)


def test_the_same_seed_gives_the_same_split_on_every_machine():
    # Golden: made by `split(FRAMES, SplitConfig(kind="ratio", seed=7))`.
    (fold,) = split(FRAMES, SplitConfig(kind="ratio", seed=7))
    assert fold.test == ("P00", "P10", "P15", "P17", "P20")
    assert fold.val == ("P08", "P18", "P21", "P22")
    assert split(FRAMES, SplitConfig(seed=8)) != [fold]


def test_folds_are_balanced_by_frames():
    folds = split(FRAMES, SplitConfig(kind="kfold", folds=5))
    sizes = [sum(FRAMES[subject] for subject in fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= max(FRAMES.values())


def test_leave_one_subject_out_has_a_fold_a_subject():
    folds = split(FRAMES, SplitConfig(kind="leave_one_subject_out"))
    assert [fold.test for fold in folds] == [(subject,) for subject in sorted(FRAMES)]


def test_one_fold_alone_is_the_same_fold():
    every = split(FRAMES, SplitConfig(kind="kfold", folds=4))
    assert split(FRAMES, SplitConfig(kind="kfold", folds=4, fold=2)) == [every[2]]


def test_listed_subjects_are_chosen_by_patterns():
    frames = dict.fromkeys(["train_1", "train_2", "dev_1", "dev_2"], 10)
    config = SplitConfig(kind="listed", train=["train_*"], val=["dev_1"], test=["dev_2"])
    assert split(frames, config) == [Fold(0, ("train_1", "train_2"), ("dev_1",), ("dev_2",))]


def test_folds_can_come_from_a_file(tmp_path):
    path = tmp_path / "folds.yaml"
    path.write_text(yaml.safe_dump({"folds": [["P00", "P05"], ["P01"]]}))
    folds = split(FRAMES, SplitConfig(kind="file", file=str(path)))
    assert [fold.test for fold in folds] == [("P00", "P05"), ("P01",)]
    assert all(len(fold.train) + len(fold.val) + len(fold.test) == 23 for fold in folds)


@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        (
            {"a1": 1, "a2": 1, "b": 1},
            {"kind": "listed", "train": ["a*"], "val": ["a1"], "test": ["b"]},
            "subject 'a1' is in both train and val",
        ),
        (
            {"a": 1, "b": 1},
            {"kind": "listed", "train": ["a"], "val": ["b"], "test": ["c"]},
            "data.split.test: no subject is called 'c'",
        ),
        (
            {"a": 1, "b": 1},
            {"kind": "listed", "train": ["a"], "val": ["b"]},
            "has no test subject",
        ),
        ({"a": 1, "b": 1}, {"kind": "ratio"}, "has no"),
        ({"a": 1, "b": 1, "c": 1}, {"kind": "kfold", "folds": 5}, "the corpus has 3 subjects"),
        (FRAMES, {"kind": "kfold", "folds": 5, "fold": 5}, "fold 5 is not one of 0 to 4"),
        (FRAMES, {"kind": "file", "file": "/nowhere.yaml"}, "cannot read data.split.file"),
    ],
)
def test_an_impossible_split_is_refused(frames, settings, message):
    with pytest.raises(UserError, match=message):
        split(frames, SplitConfig(**settings))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("folds: [[P00], [P00]]", "a subject in two folds"),
        ("folds: [[P99]]", "names subject 'P99'"),
        ("[1, 2", "must hold `folds`"),
        ("parts: []", "must hold `folds`"),
    ],
)
def test_a_file_that_is_no_list_of_folds_is_refused(tmp_path, content, message):
    path = tmp_path / "folds.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        split(FRAMES, SplitConfig(kind="file", file=str(path)))
