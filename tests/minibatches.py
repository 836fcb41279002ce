"""Rollouts to cut into minibatches, and the losses of all networks, taken one environment, step and row at a time.

Networks compute in float64 here, so that what is the same but for the order of its terms agrees to many digits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch as th
from teams import make_model, randomise
from torch import nn

from hmasd_sb3 import HMASD
from hmasd_sb3.losses import clipped_policy_loss, value_loss
from hmasd_sb3.rollouts import evaluate_rollout
from hmasd_sb3.updates import PPOSettings

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
