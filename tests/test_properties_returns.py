"""Rewards, values, advantages and returns of any rollout equal plain loops over the equations, one environment at a time.

Networks are only asked what a state is worth; what follows what, and what counts, is worked out here from the script.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from scripted import Expected, Rollout, Script, for_all_scripts, mean, rollouts, simulate

from hmasd_sb3.policies.discoverer import one_hot
from hmasd_sb3.rollouts import evaluate_rollout

GAMMA, SKILL_GAMMA, LAM = 0.97, 0.8, 0.9
COEFS = (1.5, 0.3, 0.4)
"""lambda_e, lambda_D, lambda_d."""


class Evaluated(NamedTuple):
    """A rollout with what the package says of it, and the networks' statistics from before it was looked at."""

    rollout: Rollout
    buffer: Any
    low: tuple[float, float]
    high: tuple[float, float]
    critic_hidden: th.Tensor
    """(B, H) before the rollout."""
    seen_before: tuple[float, float]
    """Rows that the discriminators' scales had seen: states, observations."""


def evaluate(rollout: Rollout) -> Evaluated:
    model = rollout.model
    policy, buffer = model.policy, model.rollout_buffer
    scalers = policy.discriminators.state_scaler, policy.discriminators.obs_scaler
    before = (policy.low_value_norm.statistics(), policy.high_value_norm.statistics(), model._critic_hidden.clone())
    seen = float(scalers[0].count), float(scalers[1].count)
    buffer.finish(model._last_obs)
    settings = model._return_settings()._replace(
        gamma=GAMMA, skill_gamma=SKILL_GAMMA, gae_lambda=LAM, team_reward_coef=COEFS[0], team_diversity_coef=COEFS[1],
        agent_diversity_coef=COEFS[2],
    )  # fmt: skip
    evaluate_rollout(policy, buffer, model._critic_hidden, settings)
    return Evaluated(rollout, buffer, *before, seen)


def tensor(array: Any) -> th.Tensor:
    return th.as_tensor(np.asarray(array))[None]


def filled(values: list[float], present: list[bool]) -> list[float]:
    """Absent agents are given the mean of those who are there."""
    others = mean([v for v, there in zip(values, present, strict=True) if there]) if any(present) else mean(values)
    return [v if there else others for v, there in zip(values, present, strict=True)]


def normalised(raw: list[float], every: list[float], floor: float) -> list[float] | None:
    """``raw`` by mean and deviation of ``every``; None where they are too much alike for float32 to tell."""
    if not every:
        return None
    centre = mean(every)
    deviation = math.sqrt(mean([(x - centre) ** 2 for x in every]))
    if max(deviation, floor) < 1e-2 and len(every) > 1:
        return None
    return [(x - centre) / max(deviation, floor, 1e-8) for x in raw]


# ---------------------------------------------------------------- low level


@for_all_scripts(20)
def test_rewards_look_at_the_true_successor(script: Script) -> None:
    expected = simulate(script)
    for rollout in rollouts(script):
        found = evaluate(rollout)
        discriminators, n_states, n_obs = rollout.model.policy.discriminators, 0, 0
        for t, step in enumerate(rollout.steps):
            for env in range(script.n_envs):
                end = expected[env][rollout.first + t].end
                if end == "lost":
                    continue
                skills, after = step.decision.state, step.successors[env]
                there = script.there(env, rollout.first + t), script.there_after(env, rollout.first + t, end)
                both = [a and b for a, b in zip(*there, strict=True)]
                n_states, n_obs = n_states + 1, n_obs + sum(both)
                with th.no_grad():
                    team, agents = discriminators.logits(
                        tensor(after["state"]), tensor(after["obs"]), tensor(skills.team_skill[env])
                    )
                z, own = int(skills.team_skill[env]), skills.agent_skills[env]
                shared = COEFS[0] * step.rewards[env] + COEFS[1] * float(team.log_softmax(-1)[0, z])
                said = [float(row[skill]) for row, skill in zip(agents.log_softmax(-1)[0], own, strict=True)]
                said = filled(said, both) if any(both) else [-math.log(3)] * script.n_agents
                wanted = [shared + COEFS[2] * x for x in said]
                np.testing.assert_allclose(found.buffer.agent_rewards[t, env], wanted, atol=1e-4)
        assert float(discriminators.state_scaler.count) - found.seen_before[0] == n_states
        assert float(discriminators.obs_scaler.count) - found.seen_before[1] == n_obs


class LowLevel(NamedTuple):
    """Of one environment: (T, N) each."""

    values: list[list[float]]
    advantages: list[list[float]]


class DoubleCritic:
    """The critic, one step at a time in double precision.

    A layer norm over nearly equal numbers magnifies the rounding of single precision, which would otherwise count twice: in
    what is tested and in what it is compared with.
    """

    def __init__(self, critic: Any) -> None:
        self.critic = copy.deepcopy(critic).double()

    def step(self, state: Any, team_skill: th.Tensor, agent_skills: th.Tensor, hidden: th.Tensor) -> tuple[Any, th.Tensor]:
        skills = [
            one_hot(team_skill, self.critic.n_team_skills),
            one_hot(agent_skills, self.critic.n_agent_skills).flatten(-2),
        ]
        with th.no_grad():
            inputs = self.critic.trunk(th.cat([tensor(state), *skills], dim=-1).double())
            hidden = self.critic.gru(inputs[None], hidden[None])[1][0]
            return self.critic._values(hidden)[0].tolist(), hidden


def low_level(script: Script, expected: list[Expected], found: Evaluated, env: int, offset: float) -> LowLevel:
    rollout, critic = found.rollout, DoubleCritic(found.rollout.model.policy.critic)
    (centre, scale), n_steps = found.low, script.n_steps
    hidden = found.critic_hidden[env : env + 1].double()
    values, following = [], []
    for t, step in enumerate(rollout.steps):
        number, skills, now = rollout.first + t, step.decision.state, expected[rollout.first + t]
        running = tensor(skills.team_skill[env]), tensor(skills.agent_skills[env])

        def said(state: Any, memory: th.Tensor, there: list[bool], running: Any = running) -> list[float]:
            outputs, _ = critic.step(state, *running, memory)
            return filled([x * scale + centre + offset for x in outputs], there)

        if now.start:
            hidden = th.zeros_like(hidden)
        there = script.there(env, number)
        values.append(said(step.observation["state"][env], hidden, there))
        _, hidden = critic.step(step.observation["state"][env], *running, hidden)
        if now.end == "terminated":
            following.append([0.0] * script.n_agents)
        elif now.end is not None or t == n_steps - 1:
            following.append(said(step.successors[env]["state"], hidden, script.there_after(env, number, now.end)))
        else:
            following.append([])  # the next step's, which is not known yet
    advantages: list[list[float]] = [[] for _ in range(n_steps)]
    later = [0.0] * script.n_agents
    for t in reversed(range(n_steps)):
        now, there = expected[rollout.first + t], script.there(env, rollout.first + t)
        after = filled(following[t] or values[t + 1], there)
        if now.end == "lost":
            later = [0.0] * script.n_agents
        else:
            rewards = found.buffer.agent_rewards[t, env].tolist()
            carry = 0.0 if now.end is not None else GAMMA * LAM
            later = [
                r + GAMMA * v_after - v + carry * a for r, v_after, v, a in zip(rewards, after, values[t], later, strict=True)
            ]
        advantages[t] = later
    return LowLevel(values, advantages)


@for_all_scripts(22)
def test_low_level_advantages_and_returns(script: Script) -> None:
    expected = simulate(script)
    offset = -(COEFS[1] * math.log(2) + COEFS[2] * math.log(3)) / (1 - GAMMA)
    for rollout in rollouts(script):
        found = evaluate(rollout)
        by_env = [low_level(script, expected[env], found, env, offset) for env in range(script.n_envs)]
        values = np.array([level.values for level in by_env]).swapaxes(0, 1)
        raw = np.array([level.advantages for level in by_env]).swapaxes(0, 1)
        np.testing.assert_allclose(found.buffer.values, values, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.buffer.returns, raw + values - offset, rtol=1e-5, atol=1e-4)
        counting = [
            raw[t, env, agent]
            for t, env, agent in np.ndindex(raw.shape)
            if script.there(env, rollout.first + t)[agent] and expected[env][rollout.first + t].end != "lost"
        ]
        if not script.normalize:
            np.testing.assert_allclose(found.buffer.advantages, raw, rtol=1e-5, atol=1e-4)
        elif (wanted := normalised(raw.ravel().tolist(), counting, 0.0)) is not None:
            np.testing.assert_allclose(found.buffer.advantages.ravel(), wanted, atol=1e-2 if len(counting) < 3 else 1e-3)


# ---------------------------------------------------------------- high level


def skill_values(script: Script, found: Evaluated, observation: dict[str, Any], there: list[bool]) -> list[float]:
    """V_h of one state, of each token, in reward units; that of an absent agent is the state's."""
    centre, scale = found.high
    mask = None if script.presence is None else tensor(there)
    with th.no_grad():
        outputs = found.rollout.model.policy.coordinator.values(tensor(observation["state"]), tensor(observation["obs"]), mask)
    said = [x * scale + centre for x in outputs[0].tolist()]
    return [said[0], *(x if here else said[0] for x, here in zip(said[1:], there, strict=True))]


def high_level(script: Script, expected: list[Expected], found: Evaluated, env: int) -> dict[int, tuple[list[float], ...]]:
    """Step of the rollout -> values and advantages (1+N) of what was assigned there."""
    rollout, n_steps = found.rollout, script.n_steps
    rows = expected[rollout.first : rollout.first + n_steps]

    def worth(t: int) -> list[float]:
        seen = {key: value[env] for key, value in rollout.steps[t].observation.items()}
        return skill_values(script, found, seen, script.there(env, rollout.first + t))

    values = {t: worth(t) for t in range(n_steps) if rows[t].assigned}
    results: dict[int, tuple[list[float], ...]] = {}
    for start in sorted(values, reverse=True):
        stop = next(t for t in range(start, n_steps) if rows[t].reason is not None)
        reward = sum(float(rollout.steps[t].rewards[env]) for t in range(start, stop + 1) if rows[t].end != "lost")
        end, begins_next = rows[stop].end, stop + 1 in values and rows[stop].end is None
        if end == "terminated" or (end == "truncated" and not script.timeout_bootstrap):
            after = [0.0] * (1 + script.n_agents)
        elif begins_next:
            after = values[stop + 1]
        else:
            there = script.there_after(env, rollout.first + stop, end)
            after = skill_values(script, found, rollout.steps[stop].successors[env], there)
        later = [0.0] * (1 + script.n_agents)
        if begins_next and rows[stop + 1].end != "lost":
            later = results[stop + 1][1]
        advantages = [
            reward + SKILL_GAMMA * v_after - v + SKILL_GAMMA * LAM * a
            for v_after, v, a in zip(after, values[start], later, strict=True)
        ]
        results[start] = values[start], advantages
    return results


@for_all_scripts(24)
def test_high_level_advantages_and_returns(script: Script) -> None:
    expected = simulate(script)
    for rollout in rollouts(script):
        found, raw, counting = evaluate(rollout), {}, []
        buffer = found.buffer
        for env in range(script.n_envs):
            for t, (values, advantages) in high_level(script, expected[env], found, env).items():
                np.testing.assert_allclose(buffer.skill_values[t, env], values, rtol=1e-5, atol=1e-4)
                np.testing.assert_allclose(buffer.skill_returns[t, env], np.add(values, advantages), rtol=1e-5, atol=1e-4)
                raw[t, env] = advantages
                if expected[env][rollout.first + t].end != "lost":
                    there = [True, *script.there(env, rollout.first + t)]
                    counting += [a for a, here in zip(advantages, there, strict=True) if here]
        assert set(raw) == {(int(t), int(env)) for t, env in np.argwhere(buffer.assigned)}
        assert not buffer.skill_advantages[~buffer.assigned].any(), "an advantage of what was not decided"
        for (t, env), advantages in raw.items():
            if not script.normalize:
                np.testing.assert_allclose(buffer.skill_advantages[t, env], advantages, rtol=1e-5, atol=1e-4)
            elif (wanted := normalised(advantages, counting, 0.1)) is not None:
                np.testing.assert_allclose(buffer.skill_advantages[t, env], wanted, atol=1e-3)


@for_all_scripts(10)
def test_mean_rewards_in_the_log_are_over_what_is_known(script: Script) -> None:
    expected = simulate(script)
    model, wanted = None, 0.0
    for rollout in rollouts(script):
        if model is not None:
            assert model.logger.name_to_value["reward/team"] == pytest.approx(wanted, abs=1e-4)
        model = rollout.model
        earned = [
            float(step.rewards[env])
            for t, step in enumerate(rollout.steps)
            for env in range(script.n_envs)
            if expected[env][rollout.first + t].end != "lost"
        ]
        wanted = mean(earned) if earned else 0.0
