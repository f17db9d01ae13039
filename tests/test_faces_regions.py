"""Boxes, regions and resampling of faces: against loops, by hand, and by laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from affect.extraction.faces import boxes, regions, sampling
from affect.extraction.faces.regions import Regions
from tests.test_faces_networks import noise

# Preparation of pixels


def test_squared_by_hand():
    row = [[0, 0, 0], [10, 20, 30], [20, 40, 60], [30, 60, 90]]
    pixels = torch.tensor([[row, row]], dtype=torch.uint8)  # 2 x 4: two black rows follow
    found = sampling.squared(pixels, 3)[0, 0]
    # columns at 0, 4/3, 8/3; rows likewise, so that the second lies 1/3 on the way to black
    expected = np.outer([1, 2 / 3, 0], [0, 40 / 3, 80 / 3])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_enlarging_repeats_the_last_pixel():
    pixels = torch.tensor([[[[8] * 3, [4] * 3]] * 2], dtype=torch.uint8)
    found = sampling.squared(pixels, 4)[0, 0]
    np.testing.assert_allclose(found, np.tile([8, 6, 4, 4], (4, 1)), atol=1e-6)


def sampled(image, x, y):
    """Bilinear, black outside."""
    total = np.zeros(3)
    for column in (np.floor(x), np.floor(x) + 1):
        for row in (np.floor(y), np.floor(y) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                total += share * image[int(row), int(column)]
    return total


@pytest.mark.parametrize("roll", [0.0, 0.7])
def test_crops_equal_a_loop(roll):
    pixels = noise(2, 20, 30)
    given_regions = Regions(
        torch.tensor([[14.25, 9.5], [3.0, 17.0]]), torch.tensor([9.0, 21.0]), torch.full((2,), roll)
    )
    found = sampling.cropped(pixels, given_regions, torch.tensor([1, 0]), 5)
    for face, (frame, (cx, cy), side) in enumerate([(1, (14.25, 9.5), 9), (0, (3, 17), 21)]):
        for row in range(5):
            for column in range(5):
                across, down = side * (column / 5 - 0.5), side * (row / 5 - 0.5)
                x = cx + np.cos(roll) * across - np.sin(roll) * down
                y = cy + np.sin(roll) * across + np.cos(roll) * down
                expected = sampled(pixels[frame].numpy(), x, y)
                np.testing.assert_allclose(found[face, :, row, column], expected, atol=1e-2)


# Boxes


coordinates = st.integers(0, 12)
scored_boxes = st.lists(
    st.tuples(
        coordinates, coordinates, coordinates, coordinates, st.integers(0, 5), st.integers(0, 2)
    ),
    max_size=12,
)


def slowly_unsuppressed(found, scores, frames, limit):
    kept = []
    for index in sorted(
        range(len(found)), key=lambda index: (frames[index], -scores[index], index)
    ):
        x, y, right, below = found[index]
        for other in kept:
            if frames[other] != frames[index]:
                continue
            a, b, c, d = found[other]
            shared = max(0, min(right, c) - max(x, a)) * max(0, min(below, d) - max(y, b))
            if shared > limit * ((right - x) * (below - y) + (c - a) * (d - b) - shared):
                break
        else:
            kept.append(index)
    return kept


@given(scored_boxes)
@settings(deadline=None)
def test_suppression_equals_a_slow_loop(drawn):
    table = np.array(drawn, float).reshape(-1, 6)
    found = np.column_stack([table[:, :2], table[:, :2] + table[:, 2:4] + 1])
    scores, frames = table[:, 4] / 5, table[:, 5].astype(int)
    # .43 is no ratio of such small areas
    kept = boxes.unsuppressed(
        torch.from_numpy(found), torch.from_numpy(scores), torch.from_numpy(frames), 0.43
    )
    assert kept.tolist() == slowly_unsuppressed(found.tolist(), scores, frames, 0.43)


def test_a_removed_box_removes_no_other():
    chain = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores, frames = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long)
    assert boxes.unsuppressed(chain, scores, frames, 0.4).tolist() == [0, 2]


def test_empty_boxes_overlap_nothing():
    empty = torch.zeros(1, 4)
    assert boxes.overlaps(empty, empty).item() == 0


# Regions


@given(st.floats(-3, 3), st.floats(0.2, 5), st.floats(-50, 50))
@settings(deadline=None, max_examples=25)
def test_regions_turn_and_grow_with_the_face(angle, scale, shift):
    face = torch.rand(1, 68, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    face[:, 36:42, 0] -= 2  # the right eye lies left in the picture
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    before = regions.around_landmarks(face)
    after = regions.around_landmarks(scale * face @ turn + shift)
    torch.testing.assert_close(after.centre, scale * before.centre @ turn + shift)
    torch.testing.assert_close(after.side, scale * before.side)
    gap = (after.roll - before.roll - angle).sin()
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-9, rtol=0)


def test_regions_by_hand():
    around = regions.around_boxes(torch.tensor([[10.0, 20, 30, 60]]))
    assert (around.centre.tolist(), around.side.tolist()) == ([[20, 40]], [40])
    corners = around.to_frame(torch.tensor([[[0.0, 0], [1, 0.5]]]))
    assert corners.tolist() == [[[0, 20], [40, 40]]]
    quarter = Regions(around.centre, around.side, torch.tensor([torch.pi / 2]))
    turned = quarter.to_frame(torch.tensor([[[1.0, 0.5]]]))  # its right is below
    torch.testing.assert_close(turned, torch.tensor([[[20.0, 60]]]))


def test_regions_between_key_frames():
    keys = Regions(
        torch.tensor([[0.0, 8], [8, 0]]), torch.tensor([10.0, 30]), torch.tensor([3.0, -3])
    )
    found = regions.moved(keys, torch.tensor([4, 8]), torch.tensor([0, 4, 5, 8, 99]))
    assert found.centre.tolist() == [[0, 8], [0, 8], [2, 6], [8, 0], [8, 0]]
    assert found.side.tolist() == [10, 10, 15, 30, 30]
    quarter = 3 + (2 * torch.pi - 6) / 4  # through 180 degrees
    np.testing.assert_allclose(found.roll[:3], [3, 3, quarter], rtol=1e-6)
    single = Regions(keys.centre[:1], keys.side[:1], keys.roll[:1])
    held = regions.moved(single, torch.tensor([4]), torch.tensor([0, 9]))
    assert held.side.tolist() == [10, 10]
