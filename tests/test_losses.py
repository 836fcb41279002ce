"""Losses against their equations, one entry at a time."""

import numpy as np
import pytest
import torch as th

from hmasd_sb3.losses import clipped_policy_loss, discriminator_loss, value_loss
from hmasd_sb3.normalization import InputScaler, ValueNorm


def test_policy_loss_is_the_clipped_surrogate():
    rng = np.random.default_rng(0)
    new, old, advantages = (rng.normal(size=50) * s for s in (0.5, 0.5, 1.0))
    expected = 0.0
    for a, b, adv in zip(new, old, advantages, strict=True):
        ratio = np.exp(a - b)
        expected -= min(ratio * adv, np.clip(ratio, 0.8, 1.2) * adv) / 50
    result = clipped_policy_loss(th.tensor(new), th.tensor(old), th.tensor(advantages), 0.2)
    assert float(result.loss) == pytest.approx(expected)
    ratios = np.exp(new - old)
    assert float(result.approx_kl) == pytest.approx(np.mean(ratios - 1 - np.log(ratios)))
    assert float(result.clip_fraction) == pytest.approx(np.mean(np.abs(ratios - 1) > 0.2))


def test_padding_counts_for_nothing():
    rng = np.random.default_rng(1)
    new, old, advantages = (th.tensor(rng.normal(size=(4, 6))) for _ in range(3))
    weights = th.ones(4, 6)
    weights[3] = 0.0
    padded = clipped_policy_loss(new, old, advantages, 0.2, weights)
    plain = clipped_policy_loss(new[:3], old[:3], advantages[:3], 0.2)
    assert float(padded.loss) == pytest.approx(float(plain.loss))
    values = [th.tensor(rng.normal(size=(4, 6, 2))) for _ in range(3)]
    assert float(value_loss(*values, 0.2, 10.0, weights[..., None])) == pytest.approx(
        float(value_loss(*(v[:3] for v in values), 0.2, 10.0))
    )


def test_policy_loss_refuses_silent_broadcasting():
    with pytest.raises(ValueError, match="one shape"):
        clipped_policy_loss(th.zeros(4, 1), th.zeros(4), th.zeros(4), 0.2)


def test_value_loss_is_huber_with_pessimistic_clip():
    def huber(x, delta):
        return 0.5 * x * x if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)

    rng = np.random.default_rng(2)
    new, old, target = (rng.normal(size=80) * 3 for _ in range(3))
    clipped = old + np.clip(new - old, -0.2, 0.2)
    pairs = list(zip(new, clipped, target, strict=True))
    expected = np.mean([max(huber(t - n, 1.5), huber(t - c, 1.5)) for n, c, t in pairs])
    plain = np.mean([huber(t - n, 1.5) for n, _, t in pairs])
    tensors = (th.tensor(new), th.tensor(old), th.tensor(target))
    assert float(value_loss(*tensors, 0.2, 1.5)) == pytest.approx(expected)
    assert float(value_loss(*tensors, None, 1.5)) == pytest.approx(plain)


def test_discriminator_loss_is_cross_entropy():
    logits = th.randn(5, 3, 4, generator=th.Generator().manual_seed(0))
    skills = th.randint(4, (5, 3), generator=th.Generator().manual_seed(1))
    expected = np.mean([-th.log_softmax(logits[r, n], 0)[skills[r, n]].item() for r, n in np.ndindex(5, 3)])
    assert float(discriminator_loss(logits, skills)) == pytest.approx(expected, rel=1e-5)


def test_value_norm_is_a_debiased_moving_average():
    norm = ValueNorm(beta=0.9, min_std=1e-9)
    rng = np.random.default_rng(0)
    batches = [rng.normal(loc=5.0 * i, scale=2.0, size=64) for i in range(4)]
    for batch in batches:
        norm.update(batch)
    weights = np.array([0.9 ** (3 - i) for i in range(4)])
    weights /= weights.sum()
    mean = sum(w * b.mean() for w, b in zip(weights, batches, strict=True))
    square = sum(w * (b**2).mean() for w, b in zip(weights, batches, strict=True))
    assert norm.statistics() == pytest.approx((mean, np.sqrt(square - mean**2)))
    values = th.linspace(-3, 3, 5)
    th.testing.assert_close(norm.denormalize(norm.normalize(values)), values, atol=1e-5, rtol=1e-5)


def test_disabled_value_norm_is_the_identity():
    norm = ValueNorm(enabled=False)
    norm.update(np.arange(10.0))
    assert norm.statistics() == (0.0, 1.0)
    assert ValueNorm().statistics() == (0.0, 1.0), "before the first batch nothing is scaled"


def test_input_scaler_uses_bounds_where_there_are_any():
    from gymnasium import spaces

    low = np.array([0.0, -np.inf], dtype=np.float32)
    high = np.array([8.0, np.inf], dtype=np.float32)
    scaler = InputScaler(spaces.Box(low, high))
    rng = np.random.default_rng(0)
    rows = np.stack([rng.uniform(0, 8, 5000), rng.normal(50.0, 4.0, 5000)], axis=1)
    for part in np.split(rows, 5):
        scaler.update(th.tensor(part, dtype=th.float32))
    scaled = scaler(th.tensor([[0.0, 50.0], [8.0, 54.0], [4.0, 46.0]]))
    expected = [[-1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]
    th.testing.assert_close(scaled, th.tensor(expected), atol=0.06, rtol=0.0)
    assert float(scaler.centre[1]) == pytest.approx(rows[:, 1].mean(), rel=1e-4)
    assert float(scaler.half_range[1]) == pytest.approx(rows[:, 1].std(), rel=1e-3)
