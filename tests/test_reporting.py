"""What the log says about skills must be true, and an inert team skill must not stay unnoticed."""

import math
import warnings

import numpy as np
import pytest
import torch as th
from teams import make_model, randomise

from hmasd_sb3.reporting import InertTeamSkillWatch, skill_report, team_skill_information


def collected(**kwargs):
    model = make_model(**kwargs)
    randomise(model)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.rollout_buffer.finish(model._last_obs)
    return model


def test_usage_redundancy_and_chance_by_hand():
    model = collected(skill_interval=6)
    buffer = model.rollout_buffer
    buffer.team_skill[:] = 0
    buffer.team_skill[:3] = 1
    buffer.assigned[:] = False
    buffer.assigned[0] = True
    buffer.agent_skills[:] = 2
    buffer.agent_skills[0] = [[0, 0], [1, 2], [3, 3], [0, 1]]
    report = skill_report(model.policy, buffer)
    assert report["team_chance"] == pytest.approx(0.75)
    assert report["team_usage_entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert report["redundancy"] == pytest.approx(0.5)
    guessed = 0
    for z in (0, 1):
        guessed += np.bincount(buffer.agent_skills[buffer.team_skill == z].ravel()).max()
    assert report["agent_chance"] == pytest.approx(guessed / buffer.agent_skills.size)


def test_information_is_zero_for_an_inert_team_skill_and_not_otherwise():
    model = collected(n_team_skills=2)
    batch = model.rollout_buffer.coordinator_batch()
    policy = model.policy
    with th.no_grad():
        # Strong enough that Z decides the agents' skills: the estimate rises towards ln 2.
        direction = th.randn(16, generator=th.Generator().manual_seed(0))
        policy.coordinator.embed_team_skill.weight[0] = 5.0 * direction
        policy.coordinator.embed_team_skill.weight[1] = -5.0 * direction
        choice = policy.coordinator.assign(batch.state, batch.obs)
        batch = batch._replace(team_skill=choice.team_skill, agent_skills=choice.agent_skills)
        strong = team_skill_information(policy, batch)
        policy.coordinator.embed_team_skill.weight[:] = 0.3
        inert = team_skill_information(policy, batch)
    assert abs(inert) < 1e-5
    assert 0.01 < strong <= math.log(2) + 1e-5


def test_information_equals_the_sum_over_team_skills():
    model = collected(n_team_skills=3)
    batch = model.rollout_buffer.coordinator_batch()
    expected = []
    with th.no_grad():
        for row in range(len(batch.team_skill)):
            probs = []
            for z in range(3):
                one = [t[row : row + 1] for t in (batch.state, batch.obs)]
                log_probs = model.policy.coordinator.evaluate(
                    *one, th.tensor([z]), batch.agent_skills[row : row + 1]
                ).log_probs[0]
                probs.append((math.exp(log_probs[0]), math.exp(log_probs[1:].sum())))
            marginal = sum(p_z * p_skills for p_z, p_skills in probs)
            expected.append(math.log(probs[batch.team_skill[row]][1] / marginal))
        assert team_skill_information(model.policy, batch) == pytest.approx(np.mean(expected), abs=1e-5)


def test_inert_team_skill_warns_once_after_patience():
    watch = InertTeamSkillWatch(patience=3)
    dead = {"team_accuracy": 0.5, "team_chance": 0.5, "team_skill_information": 0.0}
    alive, recognised = {**dead, "team_skill_information": 0.2}, {**dead, "team_accuracy": 0.6}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for report in (dead, dead, alive, dead, dead, recognised, dead, dead, {}):
            watch.look(report)
    with pytest.warns(UserWarning, match="team skill has changed nothing"):
        watch.look(dead)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            watch.look(dead)


def test_accuracy_is_that_of_the_discriminators_on_true_successors():
    model = collected()
    buffer = model.rollout_buffer
    report = skill_report(model.policy, buffer)
    pairs = buffer.discriminator_data()
    with th.no_grad():
        team, agents = model.policy.discriminators.logits(pairs.state, pairs.obs, pairs.team_skill)
    assert report["team_accuracy"] == pytest.approx((team.argmax(-1) == pairs.team_skill).float().mean().item())
    assert report["agent_accuracy"] == pytest.approx((agents.argmax(-1) == pairs.agent_skills).float().mean().item())
    by_skill = [
        (agents.argmax(-1) == pairs.agent_skills)[pairs.agent_skills == skill].float().mean().item()
        for skill in pairs.agent_skills.unique()
    ]
    assert report["agent_worst_accuracy"] == pytest.approx(min(by_skill))
