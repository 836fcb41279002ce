"""Networks and spaces of teams whose agents come and go: each test names the defect it guards against."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from teams import make_model, randomise

from hmasd_sb3 import HMASD
from hmasd_sb3.policies.coordinator import RandomCoordinator
from hmasd_sb3.policies.spec import TeamSpaceError, TeamSpec, first_agent

ENVS, AGENTS = 4, 3
LEAVING = {"n_agents": AGENTS, "p_leave": 0.25}


def collected() -> HMASD:
    """A model with skewed parameters and a complete rollout."""
    model = make_model(ENVS, LEAVING)
    randomise(model)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


# ---- networks


def test_absent_agents_have_one_symbol_for_what_they_see_and_one_for_their_skill() -> None:
    """Guards: one of the two used for both, so that the other is never learnt."""
    model = collected()
    coordinator, batch = model.policy.coordinator, model.rollout_buffer.coordinator_batch()
    scored = coordinator.evaluate(*batch[:4], batch.agent_mask)
    found = th.autograd.grad(
        scored.values.sum(), [coordinator.absent_obs, coordinator.absent_skill], allow_unused=True, retain_graph=True
    )
    assert found[0].abs().max() > 1e-4
    assert found[1] is None, "values do not depend on skills"
    found = th.autograd.grad(scored.log_probs[batch.weights > 0].sum(), [coordinator.absent_skill])
    assert found[0].abs().max() > 1e-4


def test_noise_reaches_what_both_discriminators_see() -> None:
    """Guards: q_d trained without noise."""
    discriminators = collected().policy.discriminators
    inputs = th.zeros(5, 4), th.zeros(5, AGENTS, 3), th.zeros(5, dtype=th.long)
    with th.no_grad():
        for clean, noisy in zip(discriminators.logits(*inputs), discriminators.logits(*inputs, noise=1.0), strict=True):
            assert (clean - noisy).abs().max() > 1e-2


def test_a_random_coordinator_can_be_given_a_team_skill() -> None:
    """Guards: a forced Z that is drawn all the same."""
    coordinator = make_model(policy_kwargs={"coordinator_class": RandomCoordinator}, n_team_skills=3).policy.coordinator
    forced = th.tensor([2, 0, 1, 1, 2, 0])
    assert th.equal(coordinator.assign(th.zeros(6, 4), th.zeros(6, 2, 3), team_skill=forced).team_skill, forced)


# ---- spaces and what predict is given


def test_bounds_of_all_agents_are_taken_together() -> None:
    """Guards: observations scaled by the first agent's bounds, or by those that all share."""
    low, high = (np.array(rows, dtype=np.float32) for rows in ([[0, -2], [-1, 0]], [[3, 0], [1, 4]]))
    assert first_agent(spaces.Box(low, high)) == spaces.Box(np.array([-1, -2], np.float32), np.array([3, 4], np.float32))


def test_masks_of_another_shape_are_refused() -> None:
    team = make_model(ENVS, LEAVING).env
    for key, shape in (("agent_mask", (2,)), ("agent_mask", (3, 1)), ("action_mask", (3, 2))):
        wrong = spaces.Dict({**team.observation_space.spaces, key: spaces.MultiBinary(shape)})
        with pytest.raises(TeamSpaceError, match=f"'{key}' must have shape"):
            TeamSpec.from_spaces(wrong, team.action_space)


def test_predict_needs_exactly_the_keys_it_was_trained_on() -> None:
    """Guards: an agent mask overlooked by a model that never had one."""
    model = make_model(ENVS, {"p_leave": 0.0})
    observation = model.env.reset()
    with pytest.raises(
        ValueError, match=r"has the keys \['agent_mask', 'obs', 'state'\], this model needs \['obs', 'state'\]"
    ):
        model.predict({**observation, "agent_mask": np.ones((ENVS, 2), dtype=np.int8)})
    with pytest.raises(ValueError, match="this model needs"):
        model.predict({"obs": observation["obs"]})
