import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affect.extraction.rows import Rows


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=6))
def test_rows_are_all_there_in_order(lengths):
    rows, count = Rows(), 0
    for length in lengths:
        rows.add(torch.arange(count, count + length)[:, None].expand(-1, 3))
        count += length
    np.testing.assert_array_equal(rows.all(), np.arange(count)[:, None].repeat(3, 1))


def test_no_rows_are_a_mistake():
    with pytest.raises(ValueError, match="no rows"):
        Rows().all()
