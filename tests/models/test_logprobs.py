"""Log-probabilities, values and scores against loops over unpadded rows, whatever the padding,
order and grouping.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models import logprobs
from harness.models.batches import Batch, PromptBatch
from harness.models.capabilities import enable_sharing
from harness.models.logprobs import (
    completion_logits,
    completion_logp,
    completion_logp_and_entropy,
    completion_scores,
    completion_states,
    completion_values,
    masked_mean,
    masked_whiten,
)
from harness.models.micro_batches import in_micro_batches, micro_batches

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def rows_of(batch):
    """Yield (i, j, prompt ids, completion ids) without padding."""
    lengths = batch.lengths
    for i in range(batch.shape[0]):
        prompt = batch.prompts.ids[i][batch.prompts.mask[i] > 0].tolist()
        for j in range(batch.shape[1]):
            yield i, j, prompt, batch["completion_ids"][i, j, : lengths[i, j]].tolist()


@torch.no_grad()
def logp_by_hand(model, batch):
    """Return (B, K, T): one unpadded row at a time, log_softmax and gather."""
    out = torch.zeros(batch.shape)
    for i, j, prompt, ids in rows_of(batch):
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0] / batch.temperature
        logp = logits.log_softmax(-1)
        for t, token in enumerate(ids):
            out[i, j, t] = logp[len(prompt) + t - 1, token]
    return out


@torch.no_grad()
def scalars_by_hand(model, batch):
    """Yield (i, j, Q, scalars of the unpadded row)."""
    for i, j, prompt, ids in rows_of(batch):
        hidden = model.trunk(input_ids=torch.tensor([prompt + ids])).last_hidden_state[0]
        yield i, j, len(prompt), (hidden @ model.head.weight[0] + model.head.bias)


def padded(batch, left=3, right=4, pad=0):
    """Return the batch with more padding on both sides of everything."""
    extend = torch.nn.functional.pad
    prompts = PromptBatch(
        batch.prompts.prompts,
        extend(batch.prompts.ids, (left, 0), value=pad),
        extend(batch.prompts.mask, (left, 0)),
    )
    columns = {
        "completion_ids": extend(batch["completion_ids"], (0, right), value=pad),
        "mask": extend(batch["mask"], (0, right)),
    }
    return Batch(prompts, columns, batch.temperature)


def close(a, b):
    torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.fixture(params=["llama", "gpt2", "llama packed", "gpt2 packed"])
def model(request, tiny_model, gpt2_model):
    model = {"llama": tiny_model, "gpt2": gpt2_model}[request.param.split()[0]]
    if "packed" in request.param:
        model = copy.deepcopy(model)
        assert enable_sharing(model)
    return model


@contextlib.contextmanager
def broken(model, change_inputs=None, change_states=None):
    """Break a model inside the block: change the keyword arguments it is given, or the states its
    head reads.
    """

    def before(module, args, kwargs):
        return args, change_inputs(kwargs)

    def after(module, args, output):
        output.last_hidden_state = change_states(output.last_hidden_state)

    hooks = [model.register_forward_pre_hook(before, with_kwargs=True)] if change_inputs else []
    hooks += [model.base_model.register_forward_hook(after)] if change_states else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(params=["own pad", "pad == eos"])
def batch(request, tokens, eos_padded, make_batch):
    return make_batch(tokens if request.param == "own pad" else eos_padded)


# -- log-probabilities -----------------------------------------------------------------------------


def test_logp_is_that_of_the_unpadded_row(model, batch):
    close(completion_logp(model, batch), logp_by_hand(model, batch))


def test_eos_has_a_logp_and_padding_has_none(tiny_model, batch):
    logp = completion_logp(tiny_model, batch)
    assert ((logp != 0) == (batch["mask"] > 0)).all()


@pytest.mark.parametrize("places", [-1, 1])
def test_shift_by_one_is_noticed(model, batch, places):
    with broken(model, change_states=lambda states: states.roll(places, dims=1)):
        shifted = completion_logp(model, batch)
    with pytest.raises(AssertionError):
        close(shifted, logp_by_hand(model, batch))


def test_forgotten_positions_are_noticed(gpt2_model, batch):
    with broken(
        gpt2_model,
        change_inputs=lambda given: {k: v for k, v in given.items() if k != "position_ids"},
    ):
        misplaced = completion_logp(gpt2_model, batch)
    with pytest.raises(AssertionError):  # absolute positions count the left padding
        close(misplaced, logp_by_hand(gpt2_model, batch))


def test_padding_that_is_attended_to_is_noticed(tiny_model, batch):
    def attend(given):
        return given | {"attention_mask": torch.ones_like(given["attention_mask"])}

    with broken(tiny_model, change_inputs=attend):
        unmasked = completion_logp(tiny_model, batch)
    with pytest.raises(AssertionError):
        close(unmasked, logp_by_hand(tiny_model, batch))


def test_mask_from_the_pad_token_is_noticed(tiny_model, eos_padded, make_batch):
    batch = make_batch(eos_padded)
    broken = batch.with_columns(mask=(batch["completion_ids"] != eos_padded.pad).float())
    with pytest.raises(AssertionError):  # the EOS has lost its log-probability
        close(completion_logp(tiny_model, broken), logp_by_hand(tiny_model, batch))


def test_dropout_is_noticed(tiny_model, batch, with_dropout):
    with pytest.raises(AssertionError):
        close(completion_logp(with_dropout(tiny_model), batch), logp_by_hand(tiny_model, batch))


def test_one_token_gives_exactly_one_logp(tiny_model, tokens, make_batch):
    batch = make_batch(tokens, words=(2, 4), lengths=((1, 3), (1, 1)))
    assert (completion_logp(tiny_model, batch) != 0).sum(-1).tolist() == [[1, 3], [1, 1]]


def test_padding_changes_nothing(model, batch):
    wide = padded(batch)
    close(completion_logp(model, wide)[..., : batch.shape[2]], completion_logp(model, batch))
    assert (completion_logp(model, wide)[..., batch.shape[2] :] == 0).all()


def test_what_lies_under_the_padding_changes_nothing(model, batch):
    close(
        completion_logp(model, padded(batch, pad=40)), completion_logp(model, padded(batch, pad=0))
    )


def test_batch_order_changes_nothing(model, batch):
    order = [2, 0, 3, 1]
    part = batch.select(order)
    close(completion_logp(model, part), completion_logp(model, batch)[order])


def test_grouping_changes_nothing(model, batch):
    b, k, t = batch.shape
    close(completion_logp(model, batch.flat()).view(b, k, t), completion_logp(model, batch))
    close(
        completion_logp(model, batch.pick(torch.ones(b, dtype=torch.long)))[:, 0],
        completion_logp(model, batch)[:, 1],
    )


@pytest.mark.parametrize("temperature", [0.5, 0.7, 2.0])
def test_temperature_divides_the_logits(tiny_model, batch, temperature):
    plain = completion_logits(tiny_model, batch)
    batch.temperature = temperature
    close(completion_logits(tiny_model, batch), plain / temperature)
    close(completion_logp(tiny_model, batch), logp_by_hand(tiny_model, batch))
    cold = completion_logp(tiny_model, batch)
    batch.temperature = 1.0
    with pytest.raises(AssertionError):
        close(completion_logp(tiny_model, batch), cold)


# -- micro-batches ---------------------------------------------------------------------------------


def entropy_by_hand(model, batch):
    """Return (B, K, T): -sum p log p of each token's distribution, all of them at once."""
    logp = completion_logits(model, batch).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1) * batch["mask"]


def test_entropies_come_with_logp_in_parts(model, batch, monkeypatch):
    model = copy.deepcopy(model).requires_grad_(True)
    wanted = torch.stack([completion_logp(model, batch), entropy_by_hand(model, batch)], -1)
    read = []
    monkeypatch.setattr(logprobs, "states_at_once", lambda width: 3)
    right = logprobs.Predictions.read
    monkeypatch.setattr(
        logprobs.Predictions, "read", lambda self, s: read.append(len(s)) or right(self, s)
    )
    both = completion_logp_and_entropy(model, batch)
    close(both, wanted)
    assert max(read) <= 3 and sum(read) == int(batch["mask"].sum())
    assert (both[batch["mask"] == 0] == 0).all() and both[..., 1].max() > 1  # nats
    weights = torch.linspace(-1, 1, both.numel()).view_as(both)
    parameters = list(model.parameters())
    for ours, hand in zip(
        torch.autograd.grad((both * weights).sum(), parameters),
        torch.autograd.grad((wanted * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, hand, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError):
        close(both, wanted.flip(-1))


def cost_of(batch, rows):
    part = batch.select(rows)
    b, k, t = part.shape
    return b * k * (part.prompts.ids.shape[1] + t)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_micro_batches_cover_every_row_once_within_the_budget(data):
    b, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    prompt = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=b, max_size=b)))
    size = st.lists(st.integers(1, 7), min_size=k, max_size=k)
    length = torch.tensor(data.draw(st.lists(size, min_size=b, max_size=b)))
    limit = data.draw(st.integers(1, 120))
    mask = (torch.arange(int(length.max())) < length[..., None]).float()
    prompts = (torch.arange(int(prompt.max())) >= int(prompt.max()) - prompt[:, None]).long()
    batch = Batch(
        PromptBatch([None] * b, prompts, prompts), {"completion_ids": mask.long(), "mask": mask}
    )
    parts = micro_batches(batch, limit)
    assert sorted(i for rows in parts for i in rows) == list(range(b))
    assert all(len(rows) == 1 or cost_of(batch, rows) <= limit for rows in parts)


@pytest.mark.parametrize("limit", [1, 30, 10_000])
def test_in_micro_batches_is_the_whole_at_once(tiny_model, scalar_model, batch, limit):
    whole = in_micro_batches(lambda part: completion_logp(tiny_model, part), batch, limit)
    close(whole, completion_logp(tiny_model, batch))
    scores = in_micro_batches(
        lambda part: completion_scores(scalar_model, part, "last"), batch, limit, False
    )
    close(scores, completion_scores(scalar_model, batch, "last"))


# -- values and scores -----------------------------------------------------------------------------


def check_values(values, model, batch):
    """Value t is that of the state before token t."""
    for i, j, q, scalars in scalars_by_hand(model, batch):
        n = int(batch.lengths[i, j])
        close(values[i, j, :n], scalars[q - 1 : q - 1 + n])
        assert (values[i, j, n:] == 0).all()


def check_scores(scores, model, batch, pooling):
    """A score reads the scalar after the last token, or pools those after every token."""
    for i, j, q, scalars in scalars_by_hand(model, batch):
        after = [float(scalars[q + t]) for t in range(int(batch.lengths[i, j]))]
        told = {"last": after[-1], "mean": sum(after) / len(after), "sum": sum(after)}[pooling]
        assert float(scores[i, j]) == pytest.approx(told, abs=1e-5)


def test_values_are_before_their_token(scalar_model, batch):
    check_values(completion_values(scalar_model, batch), scalar_model, batch)
    check_values(completion_values(scalar_model, padded(batch)), scalar_model, batch)
    shifted = torch.where(batch["mask"] > 0, completion_states(scalar_model, batch)[..., 1:], 0.0)
    with pytest.raises(AssertionError):
        check_values(shifted, scalar_model, batch)
    with pytest.raises(AssertionError):  # values on padding
        check_values(completion_states(scalar_model, batch)[..., :-1], scalar_model, batch)


@pytest.mark.parametrize("pooling", ["last", "mean", "sum"])
def test_scores_are_after_their_token(scalar_model, batch, pooling):
    check_scores(completion_scores(scalar_model, batch, pooling), scalar_model, batch, pooling)
    check_scores(
        completion_scores(scalar_model, padded(batch), pooling), scalar_model, batch, pooling
    )


def test_score_before_the_end_is_noticed(scalar_model, eos_padded, make_batch):
    batch = make_batch(eos_padded)
    early = completion_states(scalar_model, batch).gather(-1, (batch.lengths - 1)[..., None])[
        ..., 0
    ]
    with pytest.raises(AssertionError):
        check_scores(early, scalar_model, batch, "last")
    with pytest.raises(AssertionError):  # the last column is padding for most
        check_scores(completion_states(scalar_model, batch)[..., -1], scalar_model, batch, "last")


# -- masked statistics -----------------------------------------------------------------------------


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_numpys(shift_mean):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(3, 5, (4, 3, 7)), (rng.random((4, 3, 7)) < 0.6).astype(float)
    told = x[mask > 0]
    white = (x - told.mean()) / np.sqrt(told.var() + 1e-8) + (0 if shift_mean else told.mean())
    ours = masked_whiten(torch.tensor(x), torch.tensor(mask), shift_mean).numpy()
    np.testing.assert_allclose(ours, white * mask, atol=1e-10)
    assert float(masked_mean(torch.tensor(x), torch.tensor(mask))) == pytest.approx(told.mean())
    with pytest.raises(AssertionError):  # with the padding counted
        np.testing.assert_allclose(
            masked_whiten(torch.tensor(x * mask), torch.ones(4, 3, 7), shift_mean),
            white * mask,
            atol=1e-3,
        )
    with pytest.raises(AssertionError):  # with Bessel's correction
        np.testing.assert_allclose(
            ours,
            ((x - told.mean()) / told.std(ddof=1) + (0 if shift_mean else told.mean())) * mask,
            atol=1e-3,
        )
