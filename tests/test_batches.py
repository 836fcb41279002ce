"""Minibatches of a size that changes, gradients summed from pieces, rollouts that are no multiple of the skill interval."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pytest
import test_cnn_policy
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from teams import make_model, parameters_of, randomise, same
from torch import nn

from hmasd_sb3 import HMASD
from hmasd_sb3.losses import clipped_policy_loss, value_loss
from hmasd_sb3.pieces import consecutive_groups, even_slices
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.policies.policy import NETWORKS
from hmasd_sb3.reporting import skill_report
from hmasd_sb3.rollouts import evaluate_rollout
from hmasd_sb3.type_aliases import UpdateStats
from hmasd_sb3.updates import (
    DiscriminatorSettings,
    PPOSettings,
    update_actor,
    update_coordinator,
    update_critic,
    update_discriminators,
)

STEPS, ENVS, LENGTH = 13, 4, 4
ROLLOUT = STEPS * ENVS
TEAMS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "masked": {"kind": "masked", "n_agents": 3},
    "continuous": {"kind": "continuous"},
    "ragged": {"kind": "ragged", "n_agents": 3},
    "leaving and lost": {"n_agents": 3, "p_leave": 0.25, "p_lost": 0.2},
}
# No two values alike, and small enough that every clip and every Huber tail is in use.
SETTINGS = PPOSettings(
    n_epochs=1, batch_size=ROLLOUT, sequence_length=LENGTH, clip_range=0.05, clip_range_vf=0.1, ent_coef=0.07, vf_coef=0.3,
    huber_delta=0.2, max_grad_norm=1e9, target_kl=None,
)  # fmt: skip
LOSS_INPUTS = ("log_probs", "advantages", "returns", "value_outputs")
STORED = [f"{level}{name}" for level in ("", "skill_") for name in LOSS_INPUTS]
"""What losses are made of."""
PIECES = [None, 1, 5, 17, ROLLOUT, 10 * ROLLOUT]


def prepared(model: HMASD) -> HMASD:
    """With an evaluated rollout, parameters that moved since, and networks that compute in float64."""
    randomise(model)
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.rollout_buffer.finish(model._last_obs)
    evaluate_rollout(model.policy, model.rollout_buffer, model._critic_hidden, model._return_settings())
    randomise(model, scale=0.1, seed=1)
    for name in STORED:
        setattr(model.rollout_buffer, name, getattr(model.rollout_buffer, name).astype(np.float64))
    model.policy.double()

    def as_double(module: nn.Module, inputs: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        return tuple(tensor.double() for tensor in inputs)

    for module in model.policy.modules():
        if isinstance(module, nn.Linear | nn.GRU | nn.LayerNorm | nn.Conv2d):
            module.register_forward_pre_hook(as_double)
    model.policy.build_optimizers()
    return model


@cache
def team_model(team: str) -> HMASD:
    ends = {"p_terminate": 0.08, "p_truncate": 0.08}
    return prepared(make_model(ENVS, {**ends, **TEAMS[team]}, n_steps=STEPS, skill_interval=3))


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


# ---------------------------------------------------------------- references: one environment, step and row at a time


def begins_of(model: HMASD, env: int) -> list[bool]:
    """Whether a sequence starts at each step, from the stored memory."""
    buffer, found, since = model.rollout_buffer, [], 0
    there = buffer.observations.get("agent_mask")
    for step in range(STEPS):
        joined = there is not None and step > 0 and bool((there[step, env] > there[step - 1, env]).any())
        since = 0 if step == 0 or buffer.episode_starts[step, env] or joined else since + 1
        found.append(since % LENGTH == 0)
    return found


def counting(model: HMASD, step: int, env: int) -> np.ndarray:
    """(N,) which agents' steps are learnt from."""
    buffer = model.rollout_buffer
    if buffer.lost[step, env]:
        return np.zeros(buffer.n_agents, dtype=bool)
    if "agent_mask" not in buffer.observations:
        return np.ones(buffer.n_agents, dtype=bool)
    return buffer.observations["agent_mask"][step, env].astype(bool)


def mean_of(terms: list[th.Tensor]) -> th.Tensor:
    return th.stack(terms).mean()


def actor_loss(model: HMASD) -> th.Tensor:
    actor, buffer = model.policy.actor, model.rollout_buffer
    terms, entropies = [], []
    for env in range(ENVS):
        for step, begins in enumerate(begins_of(model, env)):
            if begins:
                memory = th.from_numpy(buffer.hidden[step, env])
            at = (step, env)
            inputs = actor._inputs(th.from_numpy(buffer.observations["obs"][at]), th.from_numpy(buffer.agent_skills[at]))
            memory = actor.gru(inputs[None], memory[None])[1][0]
            mask = buffer.observations.get("action_mask")
            legal = None if mask is None else th.from_numpy(mask[at]).bool()
            log_probs, entropy = actor.head.evaluate(actor.norm(memory), th.from_numpy(buffer.actions[at]), legal)
            for agent in np.flatnonzero(counting(model, *at)):
                old, advantage = (th.tensor(a[at][agent]) for a in (buffer.log_probs, buffer.advantages))
                terms.append(clipped_policy_loss(log_probs[agent], old, advantage, 0.05).loss)
                entropies.append(entropy[agent])
    return mean_of(terms) - 0.07 * mean_of(entropies)


def critic_loss(model: HMASD) -> th.Tensor:
    critic, buffer = model.policy.critic, model.rollout_buffer
    mean, std = model.policy.low_value_norm.statistics()
    terms = []
    for env in range(ENVS):
        for step, begins in enumerate(begins_of(model, env)):
            if begins:
                memory = buffer.critic_hidden[step, env]
            arrays = (buffer.observations["state"], buffer.team_skill, buffer.agent_skills)
            inputs = critic._inputs(*(th.from_numpy(a[step : step + 1, env]) for a in arrays))
            memory = critic.gru(inputs[None], memory[None, None])[1][0, 0]
            values = critic._values(memory)
            for agent in np.flatnonzero(counting(model, step, env)):
                old = th.tensor(buffer.value_outputs[step, env, agent])
                target = th.tensor((buffer.returns[step, env, agent] - mean) / std)
                terms.append(value_loss(values[agent], old, target, 0.1, 0.2))
    return 0.3 * mean_of(terms)


def coordinator_loss(model: HMASD) -> th.Tensor:
    policy, buffer = model.policy, model.rollout_buffer
    mean, std = policy.high_value_norm.statistics()
    policy_terms, value_terms, entropies = [], [], []
    for step, env in np.argwhere(buffer.assigned):
        arrays = (buffer.observations["state"], buffer.observations["obs"], buffer.team_skill, buffer.agent_skills)
        there = buffer.observations.get("agent_mask")
        who = None if there is None else th.from_numpy(there[step : step + 1, env]).bool()
        scored = policy.coordinator.evaluate(*(th.from_numpy(a[step : step + 1, env]) for a in arrays), who)
        counts = counting(model, step, env)
        for token in range(1 + buffer.n_agents):
            if not (counts[token - 1] if token else not buffer.lost[step, env]):
                continue
            stored = (buffer.skill_log_probs, buffer.skill_advantages, buffer.skill_value_outputs, buffer.skill_returns)
            old, advantage, old_value, target = (th.tensor(a[step, env, token]) for a in stored)
            log_prob, entropy, value = (x[0, token] for x in scored)
            policy_terms.append(clipped_policy_loss(log_prob, old, advantage, 0.05).loss)
            value_terms.append(value_loss(value, old_value, (target - mean) / std, 0.1, 0.2))
            entropies.append(entropy)
    return mean_of(policy_terms) - 0.07 * mean_of(entropies) + 0.3 * mean_of(value_terms)


def discriminators_loss(model: HMASD) -> th.Tensor:
    buffer = model.rollout_buffer
    state, obs = buffer.successors("state"), buffer.successors("obs")
    after = buffer.successors("agent_mask").astype(bool) if "agent_mask" in buffer.observations else None
    team_terms, agent_terms = [], []
    for at in np.ndindex(STEPS, ENVS):
        team_skill, skills = th.tensor(buffer.team_skill[at]), th.from_numpy(buffer.agent_skills[at])
        team, agents = model.policy.discriminators.logits(th.from_numpy(state[at]), th.from_numpy(obs[at]), team_skill)
        if not buffer.lost[at]:
            team_terms.append(-team.log_softmax(-1)[team_skill])
        counts = counting(model, *at) & (True if after is None else after[at])
        agent_terms += [-agents.log_softmax(-1)[agent, skills[agent]] for agent in np.flatnonzero(counts)]
    return mean_of(team_terms) + mean_of(agent_terms)


REFERENCES: dict[str, Callable[[HMASD], th.Tensor]] = {
    "coordinator": coordinator_loss,
    "actor": actor_loss,
    "critic": critic_loss,
    "discriminators": discriminators_loss,
}


def distance(found: th.Tensor, expected: th.Tensor) -> float:
    """In units of the gradient's norm."""
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------- pieces


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


# ---------------------------------------------------------------- a size that changes


class CountSteps(BaseCallback):
    """Gradient steps of actor and critic, and the size logged, update by update."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[float, ...]] = []
        self.logged: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.policy_version:
            self.look()

    def _on_training_end(self) -> None:
        self.look()

    def look(self) -> None:
        states = [getattr(self.model.policy, f"{name}_optimizer").state_dict()["state"] for name in ("actor", "critic")]
        self.steps.append(tuple(float(state[0]["step"]) for state in states))
        self.logged.append(self.model.logger.name_to_value["train/batch_size"])


@pytest.mark.parametrize(
    "schedule",
    [LinearSchedule(12, 192, 1.0), FloatSchedule(LinearSchedule(12, 192, 1.0)), lambda p: np.float32(12 + 180 * (1 - p))],
    ids=["linear", "float", "function"],
)
def test_number_of_minibatches_follows_the_schedule(schedule: Callable[[float], float]) -> None:
    """Guards: a schedule that is read once; a size that is rounded down instead of the number of minibatches."""
    model = make_model(4, n_steps=48, batch_size=schedule, n_epochs=2, target_kl=None)
    watch = CountSteps()
    model.learn(192 * 4, callback=watch, log_interval=1000)
    expected = [3, 2, 1, 1]  # 192 / 57, 192 / 102, 192 / 147, 192 / 192
    assert watch.logged == [192 / number for number in expected]
    taken = np.diff(np.array([(0.0, 0.0), *watch.steps]), axis=0)
    np.testing.assert_array_equal(taken, np.array([[2.0 * number] * 2 for number in expected]))


def test_a_constant_schedule_is_the_number() -> None:
    trained = []
    for size in (24, lambda progress_remaining: 24.0):
        model = make_model(batch_size=size)
        model.learn(48 * 2)
        trained.append(parameters_of(model))
    assert same(*trained)


def test_sizes_below_a_chunk_give_one_chunk_each_and_say_so() -> None:
    model = make_model(batch_size=lambda p: 1, n_epochs=1, target_kl=None, env_kwargs={"p_terminate": 0, "p_truncate": 0})
    model.learn(48)
    assert model.logger.name_to_value["train/critic_gradient_steps"] == 12
    assert model.logger.name_to_value["train/batch_size"] == 4.0


@settings(max_examples=60, deadline=None)
@given(
    size=st.floats(1, ROLLOUT),
    pieces=st.none() | st.integers(1, 2 * ROLLOUT),
    length=st.integers(1, STEPS),
    team=st.sampled_from(["discrete", "leaving and lost"]),
    seed=st.integers(0, 2**31),
)
def test_every_step_is_in_one_piece_of_one_minibatch(
    size: float, pieces: int | None, length: int, team: str, seed: int
) -> None:
    buffer = team_model(team).rollout_buffer
    kept = buffer.advantages, buffer.returns
    shape = kept[0].shape
    buffer.advantages = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    buffer.returns = buffer.advantages
    counts = buffer.counting_samples()
    counted = buffer.advantages if counts is None else buffer.advantages[counts]
    number = max(1, round(ROLLOUT / size))
    try:
        for minibatches, field in ((buffer.actor_minibatches, "advantages"), (buffer.critic_minibatches, "returns")):
            seen: list[float] = []
            found = list(minibatches(length, size, np.random.default_rng(seed), pieces))
            assert len(found) <= number
            for minibatch in found:
                batches = [piece.gather() for piece in minibatch]
                own = [(b.weights * getattr(b, field)).flatten().tolist() for b in batches]
                own = [[value for value in values if value] for values in own]
                total = sum(map(len, own))
                assert total <= (ROLLOUT / number + length) * buffer.n_agents
                if total and len(own) > 1:
                    assert [piece.share for piece in minibatch] == pytest.approx([len(part) / total for part in own])
                if pieces is not None:
                    assert max(map(len, own)) <= (pieces + length) * buffer.n_agents
                seen += chain(*own)
            assert sorted(seen) == counted.ravel().tolist()
    finally:
        buffer.advantages, buffer.returns = kept


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), number=st.integers(1, 300))
def test_runs_are_about_equal_and_miss_nothing(sizes: list[int], number: int) -> None:
    total = sum(sizes)
    groups = [sizes[group] for group in consecutive_groups(np.array(sizes), number)]
    assert list(chain(*groups)) == sizes
    assert all(groups)
    assert len(groups) <= number
    assert max(map(sum, groups)) <= total / number + max(sizes)
    lengths = [part.stop - part.start for part in even_slices(total, min(number, total))]
    assert sum(lengths) == total
    assert max(lengths) - min(lengths) <= 1


def test_schedule_and_pieces_survive_saving(tmp_path: Any) -> None:
    model = make_model(batch_size=LinearSchedule(12, 48, 1.0), micro_batch_size=6)
    model.learn(48)
    model.save(tmp_path / "model.zip")
    loaded = HMASD.load(tmp_path / "model.zip", env=model.env, device="cpu")
    assert loaded.micro_batch_size == 6
    assert loaded.batch_size(0.5) == 30
    loaded.learn(48)
    assert same(parameters_of(model), parameters_of(loaded)) is False


# ---------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": lambda p: 96 * p}, r"batch_size gives 96\.0 at progress_remaining=1; .* 12 \* 4 = 48 environment"),
        ({"batch_size": lambda p: 48 * p}, r"batch_size gives 0\.0 at progress_remaining=0; .* from 1 to the rollout"),
        ({"batch_size": lambda p: 0.5}, r"batch_size gives 0\.5"),
        ({"batch_size": lambda p: float("nan")}, "batch_size gives nan"),
        ({"batch_size": lambda p: float("inf")}, "batch_size gives inf"),
        ({"batch_size": lambda p: "24"}, "batch_size gives '24'"),
        ({"batch_size": lambda p: True}, "batch_size gives True"),
        ({"batch_size": 24.0}, r"batch_size must be a whole number of at least 1, a schedule, or None, got 24\.0"),
        ({"batch_size": 49}, "batch_size=49 is larger than the rollout"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a whole number of at least 1, or None, got 0"),
        ({"micro_batch_size": 2.5}, r"micro_batch_size must be a whole number of at least 1, or None, got 2\.5"),
        ({"micro_batch_size": True}, "micro_batch_size must be a whole number"),
        ({"micro_batch_size": lambda p: 4}, "micro_batch_size must be a whole number"),
    ],
)
def test_wrong_sizes_are_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_a_schedule_that_goes_wrong_on_the_way_is_refused_there() -> None:
    """Guards: a schedule that is checked at its ends alone."""
    model = make_model(batch_size=lambda p: 24 if p in (0.0, 1.0) else 100 * p)
    with pytest.raises(ValueError, match=r"batch_size gives 75\.0 at progress_remaining=0\.75; .* 48 environment steps"):
        model.learn(48 * 4)


def test_a_schedule_is_checked_again_where_the_rollout_has_changed(tmp_path: Any) -> None:
    model = make_model(4, batch_size=LinearSchedule(12, 48, 1.0))
    model.save(tmp_path / "model.zip")
    fewer = HMASD.load(tmp_path / "model.zip", env=make_model(2).env, device="cpu")  # enough to be evaluated
    with pytest.raises(ValueError, match=r"batch_size gives 48.* at progress_remaining=0; .* 12 \* 2 = 24 environment"):
        fewer.learn(24)


# ---------------------------------------------------------------- rollouts and skills of any length


@pytest.mark.parametrize(("n_steps", "interval"), [(32, 50), (32, 10), (32, 32), (7, 3), (3, 8), (1, 4), (5, 1)])
def test_skills_run_on_over_rollouts_of_any_length(n_steps: int, interval: int) -> None:
    """Guards: skills that start or end with rollouts; rollouts without an assignment, or with one that is cut off."""
    n_envs = 32 if n_steps == 32 else 4
    env = {"p_terminate": 0.0, "p_truncate": 0.0}
    model = make_model(n_envs, env, n_steps=n_steps, skill_interval=interval, target_kl=None, discriminator_batch_size=2048)
    assigned: list[np.ndarray] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            assigned.append(model.rollout_buffer.assigned.copy())

    model.learn(5 * n_steps * n_envs, callback=Watch())
    assert model.policy_version == 5
    expected = np.arange(5 * n_steps) % interval == 0
    np.testing.assert_array_equal(np.concatenate(assigned), np.repeat(expected[:, None], n_envs, axis=1))
    logged = model.logger.name_to_value
    assert (logged["train/coordinator_epochs"] > 0) == bool(assigned[-1].any())
    assert logged["train/batch_size"] == n_steps * n_envs / next(k for k in (4, 2, 1) if n_steps * n_envs % k == 0)
    assert logged["sync/actor_first_ratio_deviation"] < 1e-4


@pytest.mark.parametrize(("n_steps", "interval"), [(32, 50), (32, 10), (3, 8)])
def test_episodes_end_where_they_like_in_rollouts_of_any_length(n_steps: int, interval: int) -> None:
    env = {"p_terminate": 0.02, "p_truncate": 0.02, "p_leave": 0.02}
    model = make_model(32, env, n_steps=n_steps, skill_interval=interval, micro_batch_size=n_steps * 4)
    model.learn(4 * n_steps * 32)
    assert model.policy_version == 4
    for name in ("actor", "coordinator"):
        assert model.logger.name_to_value[f"sync/{name}_first_ratio_deviation"] < 1e-4
