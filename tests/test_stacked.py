"""Networks in a stack against each one alone: outputs, gradients and dropout."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from affect.errors import UserError
from affect.models import MODELS, build
from affect.models.stacked import STACKABLE, Stack, _Recurrence

K, N, T = 3, 4, 9
LENGTHS = torch.tensor([[9, 7, 3, 1], [9, 9, 9, 9], [5, 2, 4, 0]])


def networks(name, head="frame", *, layers=2, dropout=0.0, bounded=False, **options):
    """Networks of one form with weights of their own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "layers": layers, "dropout": dropout, "input_dropout": dropout / 2}
    made = {"features": 5, "dimensions": 2, "head": head, "bounded": bounded, **sizes, **options}
    return [build(name, **made) for _ in range(K)]


VARIANTS = [
    *itertools.product(STACKABLE, ("frame", "window"), [{}, {"layers": 1}]),
    ("bilstm", "frame", {"dropout": 0.4, "projection": 6}),
    ("lstm", "window", {"dropout": 0.4, "projection": 6, "layers": 3}),
    ("lstm", "frame", {"dropout": 0.4, "bounded": True}),
]


@pytest.mark.parametrize(("name", "head", "options"), VARIANTS)
def test_a_stack_is_each_network_alone(name, head, options):
    models = networks(name, head, **options)
    rows = torch.stack([parameters_to_vector(model.parameters()).detach() for model in models])
    rows.requires_grad_()
    features = torch.randn(K, N, T, 5)
    mask = torch.arange(T) < LENGTHS.unsqueeze(-1)
    features[~mask] = torch.nan
    stack, drawn = Stack(models[0]), []
    for seed in range(K):
        torch.manual_seed(seed)
        drawn.append(stack.dropped(N, T, features.device))
    dropped = [torch.stack(masks) for masks in zip(*drawn, strict=True)] if stack.drops else []
    found = stack(rows, features, mask, dropped)
    upstream = torch.randn_like(found)
    (gradients,) = torch.autograd.grad(found, rows, upstream)
    for row, model in enumerate(models):
        torch.manual_seed(row)
        expected = model(features[row], mask[row])
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)
        own = torch.autograd.grad(expected, list(model.parameters()), upstream[row])
        torch.testing.assert_close(gradients[row], parameters_to_vector(own), rtol=1e-4, atol=1e-5)


@given(*(st.integers(1, most) for most in (4, 3, 6, 5)), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_recurrence_is_torchs_lstm(stack, windows, frames, width, seed):
    torch.manual_seed(seed)
    layers = [nn.LSTM(3, width, batch_first=True).double() for _ in range(stack)]
    inputs = torch.randn(stack, windows, frames, 3, dtype=torch.double)
    upstream = torch.randn(stack, windows, frames, width, dtype=torch.double)
    gates = [
        item @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
        for item, layer in zip(inputs, layers, strict=True)
    ]
    gates = torch.stack(gates).permute(2, 0, 1, 3)  # T S N 4H
    weights = torch.stack([layer.weight_hh_l0 for layer in layers])
    states = _Recurrence.apply(gates, weights).permute(1, 2, 0, 3)
    ours = list(itertools.chain.from_iterable(layer.parameters() for layer in layers))
    found = torch.autograd.grad(states, ours, upstream)
    expected = torch.stack([layer(item)[0] for item, layer in zip(inputs, layers, strict=True)])
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, ours, upstream))


def test_the_written_gradient_is_the_numeric_one():
    torch.manual_seed(0)
    gates = torch.randn(3, 2, 2, 8, dtype=torch.double, requires_grad=True)
    weights = torch.randn(2, 8, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(_Recurrence.apply, (gates, weights))


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(STACKABLE)))
def test_other_models_are_refused(name):
    model = networks(name)[0]
    with pytest.raises(UserError, match="takes lstm or bilstm alone"):
        Stack(model)


@pytest.mark.cuda
def test_a_stack_on_a_gpu_is_that_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    models = networks("bilstm")
    rows = torch.stack([parameters_to_vector(model.parameters()).detach() for model in models])
    mask = torch.arange(T) < LENGTHS.unsqueeze(-1)
    given_ = rows, torch.randn(K, N, T, 5), mask
    one, other = Stack(models[0])(*given_), Stack(models[0])(*(item.cuda() for item in given_))
    torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=1e-5)
