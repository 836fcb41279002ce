"""Gradients summed from pieces: the whole minibatch's to float precision, whatever is padding, absent or lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_cnn_policy
import torch as th
from minibatches import ENVS, LENGTH, REFERENCES, ROLLOUT, SETTINGS, STEPS, TEAMS, prepared, team_model
from teams import make_model, parameters_of, same
from torch import nn

from hmasd_sb3 import HMASD
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.policies.policy import NETWORKS
from hmasd_sb3.reporting import skill_report
from hmasd_sb3.type_aliases import UpdateStats
from hmasd_sb3.updates import (
    DiscriminatorSettings,
    update_actor,
    update_coordinator,
    update_critic,
    update_discriminators,
)

PIECES = [None, 1, 5, 17, ROLLOUT, 10 * ROLLOUT]


def update(model: HMASD, network: str, noise: float = 0.0, rows: int = ROLLOUT, **changes: Any) -> UpdateStats:
    """One update of one network, from a rollout that is the same each time."""
    learner, rng = (model.policy, model.rollout_buffer), np.random.default_rng(0)
    chosen = SETTINGS._replace(**changes)
    if network == "coordinator":
        return update_coordinator(*learner, chosen)
    if network == "discriminators":
        own = DiscriminatorSettings(1, rows, noise, 1e9, chosen.micro_batch_size)
        return update_discriminators(*learner, own, rng)
    return {"actor": update_actor, "critic": update_critic}[network](*learner, chosen, rng)


def gradients_of(model: HMASD, network: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[th.Tensor]:
    """What the optimizer is asked to step with, instead of doing it."""
    flat, found = model.policy.flat(network), []
    with monkeypatch.context() as patch:
        patch.setattr(flat.optimizer, "step", lambda: found.append(flat.gradient.clone()))
        update(model, network, **changes)
    return found


def distance(found: th.Tensor, expected: th.Tensor) -> float:
    """In units of the gradient's norm."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_is_the_whole_minibatchs_whatever_the_pieces(
    network: str, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: pieces that count alike whatever they hold; padding, absent agents or lost steps that count."""
    model = team_model(team)
    flat = model.policy.flat(network)
    pieces = th.autograd.grad(REFERENCES[network](model), flat.parameters, allow_unused=True)
    zipped = zip(pieces, flat.parameters, strict=True)
    expected = th.cat([(th.zeros_like(p) if g is None else g).reshape(-1) for g, p in zipped])
    assert expected.norm() > 1e-3
    whole = gradients_of(model, network, monkeypatch)
    for size in PIECES:
        (found,) = gradients_of(model, network, monkeypatch, micro_batch_size=size)
        assert distance(found, expected) < 1e-9, size
        assert distance(found, whole[0]) < 1e-12, size


@pytest.mark.parametrize("team", ["discrete", "leaving and lost"])
def test_every_minibatch_of_several_is_cut_too(team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: pieces cut across minibatches; another order of steps than without them."""
    for network in ("actor", "critic"):
        whole = gradients_of(team_model(team), network, monkeypatch, batch_size=ROLLOUT / 3, n_epochs=2)
        found = gradients_of(team_model(team), network, monkeypatch, batch_size=ROLLOUT / 3, n_epochs=2, micro_batch_size=6)
        assert len(whole) == len(found) == 6
        assert max(distance(*pair) for pair in zip(found, whole, strict=True)) < 1e-12


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("rows", [ROLLOUT, 7, 1])
def test_noise_on_the_discriminators_does_not_depend_on_the_pieces(
    noise: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: noise drawn piece by piece, which is another noise; rows that get another row's."""
    model, found, drawn_next = team_model("leaving and lost"), {}, set()
    for size in (None, 1, 3, 20):
        th.manual_seed(5)
        (found[size],) = gradients_of(model, "discriminators", monkeypatch, noise=noise, rows=rows, micro_batch_size=size)
        drawn_next.add(float(th.rand(1)))
    assert len(drawn_next) == 1
    clean = gradients_of(model, "discriminators", monkeypatch, rows=rows)[0]
    assert distance(found[None], clean) == 0.0 if noise == 0.0 else distance(found[None], clean) > 1e-2
    assert max(distance(gradient, found[None]) for gradient in found.values()) < 1e-12


def test_pieces_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(test_cnn_policy.make())
    for network in NETWORKS:
        found = []
        for size in (None, 5):
            th.manual_seed(5)
            found += gradients_of(model, network, monkeypatch, noise=0.3, rows=16, batch_size=16, micro_batch_size=size)
        assert distance(found[1], found[0]) < 1e-12, network


@pytest.mark.parametrize("team", ["masked", "leaving and lost"])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_reported_is_the_whole_minibatchs(network: str, team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: the last piece's numbers, or pieces' numbers that count alike; ratios of the first piece alone."""
    model = team_model(team)
    monkeypatch.setattr(model.policy.flat(network).optimizer, "step", lambda: None)
    whole = update(model, network)
    for size in (1, 5, 17):
        found = update(model, network, micro_batch_size=size)
        assert found.values == pytest.approx(whole.values, rel=1e-6)
        assert found.first_ratio_deviation == pytest.approx(whole.first_ratio_deviation, rel=1e-9)
    assert (whole.first_ratio_deviation > 0.01) == (network in ("coordinator", "actor"))


def test_the_first_ratios_are_those_of_the_first_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: ratios of later minibatches, which are to move."""
    model = team_model("discrete")
    monkeypatch.setattr(model.policy.actor_optimizer, "step", lambda: None)
    found = []
    for seed in range(4):
        arguments = (model.policy, model.rollout_buffer)
        batch = next(model.rollout_buffer.actor_batches(LENGTH, ROLLOUT / 5, np.random.default_rng(seed)))
        log_probs, _ = model.policy.actor.evaluate(batch.obs, batch.agent_skills, batch.hidden, batch.actions, None)
        expected = float((((log_probs - batch.old_log_probs).exp() - 1).abs() * batch.weights).detach().max())
        for size in (None, 3):
            chosen = SETTINGS._replace(batch_size=ROLLOUT / 5, micro_batch_size=size)
            stats = update_actor(*arguments, chosen, np.random.default_rng(seed))
            assert stats.first_ratio_deviation == pytest.approx(expected)
        found.append(expected)
    assert len(set(found)) > 1


@pytest.mark.parametrize("network", ["coordinator", "actor"])
def test_the_kl_limit_looks_at_the_whole_minibatch(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a stop by one piece's KL; what was accumulated before a stop, left over for the next step."""
    model = team_model("leaving and lost")
    monkeypatch.setattr(model.policy.flat(network).optimizer, "step", lambda: None)
    limit = update(model, network).values["approx_kl"] / 1.5
    steps = "epochs" if network == "coordinator" else "gradient_steps"
    (expected,) = gradients_of(model, network, monkeypatch)
    for size in (None, 1, 5, 17):
        assert update(model, network, micro_batch_size=size, target_kl=1.001 * limit).values[steps] == 1
        stopped = update(model, network, micro_batch_size=size, target_kl=0.999 * limit).values
        assert set(stopped) == {"approx_kl", steps}
        assert stopped[steps] == 0
        (found,) = gradients_of(model, network, monkeypatch, micro_batch_size=size)
        assert distance(found, expected) < 1e-12


def test_nothing_that_counts_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a share of nothing in nothing."""
    model = prepared(make_model(ENVS, {"p_lost": 0.1}, n_steps=STEPS))
    model.rollout_buffer.lost[:] = True
    before = parameters_of(model)
    for network in NETWORKS:
        assert update(model, network, noise=0.5, micro_batch_size=5).values["grad_norm"] == 0.0
    assert same(before, parameters_of(model))


@pytest.mark.parametrize("what", ["advantages", "returns", "skill_advantages"])
def test_a_piece_that_is_not_finite_ruins_nothing(what: str) -> None:
    network = {"advantages": "actor", "returns": "critic", "skill_advantages": "coordinator"}[what]
    model = prepared(make_model(ENVS, n_steps=STEPS))
    getattr(model.rollout_buffer, what)[0, 0] = np.nan
    before = parameters_of(model)
    with pytest.raises(NonFiniteError, match=f"The {network}'s loss is nan"):
        update(model, network, micro_batch_size=5)
    assert same(before, parameters_of(model))


def test_no_pass_takes_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: memory that does not fall, by a whole minibatch or rollout in one pass."""
    model = make_model(8, n_steps=24, batch_size=192, micro_batch_size=10, skill_interval=2, discriminator_batch_size=100)
    policy, largest = model.policy, {}

    def watch(network: nn.Module, name: str, rows: Callable[[tuple[th.Tensor, ...]], int]) -> None:
        method = getattr(network, name)

        def watched(*args: Any) -> Any:
            largest.setdefault(network, []).append(rows(args))
            return method(*args)

        monkeypatch.setattr(network, name, watched)

    watch(policy.actor, "evaluate", lambda args: args[0].shape[0] * args[0].shape[1] // 2)
    watch(policy.critic, "evaluate", lambda args: args[0].shape[0] * args[0].shape[1])
    watch(policy.coordinator, "evaluate", lambda args: len(args[0]))
    watch(policy.discriminators, "logits", lambda args: len(args[0]))
    # The report looks at up to 256 assignments at once, without gradient.
    monkeypatch.setattr("hmasd_sb3.reporting.team_skill_information", lambda *args: 0.0)
    model.learn(192)
    assert len(largest) == 4
    assert max(largest[policy.coordinator]) <= 10
    assert max(largest[policy.discriminators]) <= 10
    for chunked in (policy.actor, policy.critic):
        assert max(largest[chunked]) <= 10 + 2 * LENGTH * 4, "chunks are kept whole, and short ones padded"


def test_rewards_and_report_do_not_depend_on_the_pieces() -> None:
    model = team_model("leaving and lost")
    pairs = model.rollout_buffer.discriminator_data()
    with th.no_grad():
        for one, other in zip(
            model.policy.discriminators.log_probs(pairs), model.policy.discriminators.log_probs(pairs, 7), strict=True
        ):
            th.testing.assert_close(one, other)
    assert skill_report(model.policy, model.rollout_buffer, 7) == skill_report(model.policy, model.rollout_buffer)


@pytest.mark.parametrize("kwargs", [{}, {"target_kl": 1e-4, "n_epochs": 4, "skill_n_epochs": 4}])
def test_training_is_the_same_but_for_rounding(kwargs: dict[str, Any]) -> None:
    def trained(size: int | None) -> tuple[HMASD, dict[str, Any]]:
        # Plain gradient descent, as Adam makes large steps of rounding where a gradient is nearly zero.
        policy_kwargs = {"hidden_size": 16, "optimizer_class": th.optim.SGD}
        env = {"p_leave": 0.1, "p_lost": 0.05}
        model = make_model(4, env, micro_batch_size=size, policy_kwargs=policy_kwargs, learning_rate=0.1, **kwargs)
        before = parameters_of(model)
        model.learn(48 * 4)
        return model, before

    (whole, start), *others = (trained(size) for size in (None, 1, 7))
    expected, logged = parameters_of(whole), whole.logger.name_to_value
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    assert moved > 0.01
    for model, _ in others:
        for name, parameter in parameters_of(model).items():
            th.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-4 * moved)
        for name in ("actor_gradient_steps", "critic_gradient_steps", "coordinator_epochs", "batch_size"):
            assert model.logger.name_to_value[f"train/{name}"] == logged[f"train/{name}"]
        assert model.logger.name_to_value["sync/actor_first_ratio_deviation"] < 1e-5
