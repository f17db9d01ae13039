"""Every registered model: shapes, padding, time's direction, gradients, and oracles by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

from affect.errors import UserError
from affect.metrics import affect_loss
from affect.models import CAUSAL, MODELS, build
from affect.models.attention import LocalAttention, _visible
from affect.models.heads import FrameHead, WindowHead
from affect.models.recurrent import CELLS, Recurrent

FEATURES, DIMENSIONS = 5, 2
OWN = {"attention": {"context_frames": 6, "heads": 2}}
VARIANTS = [
    *((name, OWN.get(name, {})) for name in MODELS),
    ("bilstm", {"projection": 7}),
    ("tcn", {"causal": True, "kernel_size": 3}),
    ("conv_bigru", {"kernel_size": 4}),
]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)
every_head = pytest.mark.parametrize("head", ["frame", "window"])


def model_of(
    name,
    options=None,
    *,
    head="frame",
    hidden_size=8,
    layers=2,
    dropout=0.0,
    input_dropout=0.0,
    seed=0,
):
    torch.manual_seed(seed)
    return build(
        name,
        features=FEATURES,
        dimensions=DIMENSIONS,
        head=head,
        hidden_size=hidden_size,
        layers=layers,
        dropout=dropout,
        input_dropout=input_dropout,
        **(OWN.get(name, {}) if options is None else options),
    )


def sequences(*lengths, seed=1):
    """A padded batch, NaN in the padding, and its mask."""
    torch.manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    features = torch.randn(*mask.shape, FEATURES)
    return features.masked_fill(~mask.unsqueeze(-1), torch.nan), mask


@every_head
@every_variant
def test_shape_and_zero_in_padding(name, options, head):
    features, mask = sequences(13, 4, 0)
    output = model_of(name, options, head=head, dropout=0.1)(features, mask)
    assert output.shape == (3, 13 if head == "frame" else 1, DIMENSIONS)
    if head == "window":
        mask = mask.any(1, keepdim=True)
    assert (output[~mask] == 0).all()
    assert (output[mask] != 0).all()


@every_head
@every_variant
def test_padding_and_batching_change_no_result(name, options, head):
    model = model_of(name, options, head=head).eval()
    features, mask = sequences(9, 20, 1, 0, 20)
    together = model(features, mask)
    for n, length in enumerate((9, 20, 1)):
        alone = model(features[n : n + 1, :length], mask[n : n + 1, :length])
        compared = together[n : n + 1, : alone.shape[1]]
        torch.testing.assert_close(compared, alone, rtol=0, atol=1e-5)


@every_head
@every_variant
def test_gradient_reaches_every_parameter_and_is_finite(name, options, head):
    model = model_of(name, options, head=head, dropout=0.1)
    features, mask = sequences(15, 7, 0)
    output = model(features, mask)
    mask = mask[:, : output.shape[1]]
    affect_loss(output, torch.randn_like(output), mask).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@every_variant
def test_float64_agrees_with_float32(name, options):
    model = model_of(name, options).eval()
    features, mask = sequences(11, 6)
    single = model(features, mask)
    double = model.double()(features.double(), mask)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@every_variant
def test_state_round_trip(name, options):
    first, second = model_of(name, options, seed=0), model_of(name, options, seed=1)
    features, mask = sequences(8, 5)
    before = second.eval()(features, mask)
    second.load_state_dict(first.state_dict())
    after = second(features, mask)
    torch.testing.assert_close(after, first.eval()(features, mask), rtol=0, atol=0)
    assert not torch.equal(before, after)
    assert set(first.state_dict()) == {key for key, _ in first.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_weights(name):
    first, second = model_of(name).state_dict(), model_of(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_variant
def test_who_looks_ahead(name, options):
    model = model_of(name, options).eval()
    features, mask = sequences(12)
    changed = features.clone()
    changed[:, 7] += 1.0
    moved = (model(changed, mask) - model(features, mask)).abs().amax(dim=(0, 2)) > 1e-7
    assert moved[7]
    looks_ahead = not (name in CAUSAL or options.get("causal"))
    assert moved[:7].any() == looks_ahead


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns(name):
    model = model_of(name, hidden_size=16, layers=1)
    features, mask = sequences(30, 30, 24, 18)
    clean = torch.where(mask.unsqueeze(-1), features, 0.0)
    reference = torch.stack([clean[..., 0], clean[..., 1] - 0.5 * clean[..., 2]], dim=-1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = affect_loss(model(features, mask), reference, mask).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_stays_near_float32(name):
    model = model_of(name).eval()
    features, mask = sequences(11, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(features, mask)
    torch.testing.assert_close(mixed.float(), model(features, mask), rtol=0, atol=0.1)


def test_lstm_matches_a_loop():
    torch.manual_seed(2)
    lstm = Recurrent("lstm", True, FEATURES, hidden_size=4, layers=1, dropout=0.0)
    features, mask = sequences(9, 6)
    states = lstm(torch.where(mask.unsqueeze(-1), features, 0.0), mask)
    for n, length in enumerate((9, 6)):
        inputs = features[n, :length].numpy()
        onward = lstm_loop(inputs, lstm.forwards[0])
        backward = lstm_loop(inputs[::-1], lstm.backwards[0])[::-1]
        expected = np.concatenate([onward, backward], axis=1)
        np.testing.assert_allclose(states[n, :length].detach(), expected, atol=1e-6)


def lstm_loop(inputs, rnn):
    """Hochreiter and Schmidhuber's cell with a forget gate, frame by frame, in NumPy."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w, u, b, c = (getattr(rnn, name).detach().double().numpy() for name in names)
    hidden = cell = np.zeros(rnn.hidden_size)
    states = []
    for frame in inputs:
        i, f, g, o = np.split(w @ frame + b + u @ hidden + c, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        states.append(hidden)
    return np.array(states)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrence_is_torchs_own_on_packed_sequences(cell, bidirectional):
    torch.manual_seed(4)
    stack = Recurrent(cell, bidirectional, FEATURES, hidden_size=4, layers=3, dropout=0.0)
    packed_stack = CELLS[cell](FEATURES, 4, 3, batch_first=True, bidirectional=bidirectional)
    for suffix, layers in (("", stack.forwards), ("_reverse", stack.backwards)):
        for k, layer in enumerate(layers):
            for name, weight in layer.named_parameters():
                target = getattr(packed_stack, name.replace("l0", f"l{k}") + suffix)
                target.data.copy_(weight.data)
    features, mask = sequences(4, 9, 1)
    features = torch.where(mask.unsqueeze(-1), features, 0.0)
    packed = pack_padded_sequence(features, mask.sum(1), batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(packed_stack(packed)[0], batch_first=True)
    torch.testing.assert_close(stack(features, mask)[mask], expected[mask], rtol=0, atol=1e-6)


def test_convolutional_blocks_match_numpy():
    model = model_of("tcn", {"kernel_size": 3}, hidden_size=4, layers=1).eval()
    features, mask = sequences(7)
    block = model.encoder.blocks[0]
    x = features[0].numpy().astype(np.float64)
    hidden = np.maximum(normalise(convolve(x, block.first)), 0)
    hidden = normalise(convolve(hidden, block.second))
    expected = np.maximum(x @ block.shortcut.weight.detach().double().numpy().T + hidden, 0)
    np.testing.assert_allclose(model.encoder(features, mask)[0].detach(), expected, atol=1e-5)


def convolve(x, convolution):
    weight, bias = (p.detach().double().numpy() for p in (convolution.weight, convolution.bias))
    padded = np.pad(x, ((1, 1), (0, 0)))
    return (
        np.array([np.einsum("ock,kc->o", weight, padded[t : t + 3]) for t in range(len(x))]) + bias
    )


def normalise(x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def test_tcn_sees_as_far_as_documented():
    model = model_of("tcn", {"kernel_size": 3}, layers=2).eval()
    features, mask = sequences(41)
    changed = features.clone()
    changed[:, 20] += 10.0
    moved = (model(changed, mask) - model(features, mask)).abs().amax(dim=(0, 2)) > 1e-7
    reach = 2 * (3 - 1) * (2**2 - 1) // 2
    assert moved.nonzero().flatten().tolist() == list(range(20 - reach, 20 + reach + 1))


@pytest.mark.parametrize("place", [9, 10, 13])
def test_attention_sees_its_context_and_no_further(place):
    model = model_of("attention", {"context_frames": 5, "heads": 2}, layers=1).eval()
    features, mask = sequences(23)
    changed = features.clone()
    changed[:, place] += 1.0
    moved = (model(changed, mask) - model(features, mask)).abs().amax(dim=(0, 2)) > 1e-8
    assert moved.nonzero().flatten().tolist() == list(range(place - 5, place + 6))


@given(st.integers(1, 12))
@settings(deadline=None, max_examples=8)
def test_attention_does_not_depend_on_the_place_in_a_recording(shift):
    model = model_of("attention", {"context_frames": 4, "heads": 2}, layers=1).eval()
    features, mask = sequences(40)
    whole, cut = model(features, mask), model(features[:, shift:], mask[:, shift:])
    # a cut changes what the frames next to it see, and nothing further in
    torch.testing.assert_close(cut[:, 4:], whole[:, shift + 4 :], rtol=0, atol=1e-5)


def test_attention_matches_dense_attention_in_numpy():
    model = model_of("attention", {"context_frames": 5, "heads": 2}, layers=1).eval()
    features, mask = sequences(13)
    layer = model.encoder.layers[0]
    hidden = layer.attention_norm(model.encoder.input(features))
    visible = _visible(torch.nn.functional.pad(mask, (0, 2)), 5)
    attended = layer._attend(torch.nn.functional.pad(hidden, (0, 0, 0, 2)), visible)[0, :13]
    parts = layer.queries_keys_values(hidden)[0].detach().double().numpy()
    expected = np.concatenate(
        [dense_attention(*(parts[:, at + h : at + h + 4] for at in (0, 8, 16)), 5) for h in (0, 4)],
        axis=1,
    )
    np.testing.assert_allclose(attended.detach(), expected, atol=1e-5)


def dense_attention(queries, keys, values, reach):
    """One head over all pairs of frames, positions as turns of complex numbers."""
    frames, channels = queries.shape
    half = channels // 2
    time = np.arange(frames)
    turn = np.exp(1j * time[:, None] * 10000.0 ** (-np.arange(half) / half))
    queries, keys = ((x[:, :half] + 1j * x[:, half:]) * turn for x in (queries, keys))
    logits = (queries @ keys.conj().T).real / np.sqrt(channels)
    logits[np.abs(time[:, None] - time) > reach] = -np.inf
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ values


def test_attention_leaves_no_frame_with_nothing_to_see():
    _, mask = sequences(20, 3, 0)
    assert _visible(mask, 4).any(-1).all()


def test_attention_knows_the_order_of_frames():
    model = model_of("attention", layers=1).eval()
    features, mask = sequences(5)
    swapped = features[:, [1, 0, 2, 3, 4]]
    difference = (model(swapped, mask) - model(features, mask))[:, 2:]
    assert difference.abs().max() > 1e-4


def test_attention_costs_linearly_many_operations():
    encoder = LocalAttention(FEATURES, hidden_size=8, layers=1, dropout=0.0, heads=2)
    cost = [operations(encoder, frames) for frames in (400, 800, 1200)]
    assert cost[1] - cost[0] == cost[2] - cost[1] == cost[0]


def operations(encoder, frames):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(*sequences(frames))
    return counter.get_total_flops()


@pytest.mark.parametrize("bounded", [False, True])
def test_window_head_is_the_masked_mean_by_hand(bounded):
    head = WindowHead(3, 1, bounded=bounded)
    with torch.no_grad():
        head.frame_head.linear.weight.copy_(torch.tensor([[1.0, 2.0, 0.0]]))
        head.frame_head.linear.bias.fill_(0.5)
    encoded = torch.tensor([[[1.0, 0, 9], [3, 1, 9], [torch.inf, 0, 0]]])
    output = head(encoded, torch.tensor([[True, True, False]])).item()
    # means 2 and .5: 2 + 2 * .5 + .5
    assert output == pytest.approx(np.tanh(3.5) if bounded else 3.5)


def test_bounded_output_is_tanh():
    torch.manual_seed(3)
    head = FrameHead(4, 2, bounded=True)
    encoded, mask = 10 * torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    expected = np.tanh(head.linear(encoded).detach().numpy())
    np.testing.assert_allclose(head(encoded, mask).detach(), expected, atol=1e-6)
    model = model_of("gru", {"bounded": True})
    assert isinstance(model.head.activation, torch.nn.Tanh)


@pytest.mark.parametrize("name", MODELS)
def test_encoder_drops_out_in_training_alone(name):
    encoder = model_of(name, dropout=0.5).encoder
    features, mask = torch.randn(2, 9, FEATURES), torch.ones(2, 9, dtype=torch.bool)
    assert not torch.equal(encoder(features, mask), encoder(features, mask))
    encoder.eval()
    assert torch.equal(encoder(features, mask), encoder(features, mask))


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"input_dropout": 0.5}])
def test_model_drops_out_before_head_and_encoder_in_training_alone(options):
    # one recurrent layer has nothing between layers to drop
    model = model_of("gru", layers=1, **options)
    features, mask = sequences(9)
    assert not torch.equal(model(features, mask), model(features, mask))
    model.eval()
    assert torch.equal(model(features, mask), model(features, mask))


def test_projection_is_rectified():
    torch.manual_seed(5)
    stack = Recurrent(
        "gru", False, FEATURES, hidden_size=4, layers=1, dropout=0.0, projection=3
    ).eval()
    linear, features = stack.projection[0], torch.randn(1, 6, FEATURES)
    expected, _ = stack.forwards[0](linear(features).clamp(min=0))
    states = stack(features, torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bilsm", {}, "unknown model 'bilsm': did you mean 'bilstm'?"),
        ("xyz", {}, "unknown model 'xyz': choose one of rnn, lstm, gru, birnn, "),
        ("tcn", {"kernel": 3}, "model 'tcn' has no option 'kernel': did you mean 'kernel_size'?"),
        ("gru", {"causal": True}, "model 'gru' has no option 'causal': choose one of projection, "),
        ("gru", {"cell": "lstm"}, "model 'gru' has no option 'cell'"),
        ("attention", {"heads": 3}, "attention's hidden_size is 8: give a multiple of 6"),
    ],
)
def test_mistakes_are_told_with_their_remedy(name, options, message):
    with pytest.raises(UserError) as told:
        model_of(name, options)
    assert str(told.value).startswith(message)


def test_sizes_change_what_they_say():
    sizes = itertools.product(MODELS, [{"hidden_size": 16}, {"layers": 3}])
    for name, change in sizes:
        count, more = (
            sum(p.numel() for p in model.parameters())
            for model in (model_of(name), model_of(name, **change))
        )
        assert more > count, (name, change)
