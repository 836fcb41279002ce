"""Whatever happens in the environments, every step and every assignment is learnt from once, with what belongs to it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from scripted import Expected, Rollout, Script, for_all_scripts, joins, places, rollouts, scripts, simulate

from hmasd_sb3.rollouts import evaluate_rollout
from hmasd_sb3.sync import SyncError


def evaluate(rollout: Rollout) -> Any:
    """Fill the buffer's values and advantages."""
    model = rollout.model
    model.rollout_buffer.finish(model._last_obs)
    evaluate_rollout(model.policy, model.rollout_buffer, model._critic_hidden, model._return_settings())
    return model.rollout_buffer


def real_entries(chunks: np.ndarray) -> tuple[list[list[tuple[int, ...]]], np.ndarray]:
    """What stands where in chunks (L, C, 4): places of the real steps of each chunk, and which entries are padding (L, C).

    Padding repeats the first step; a real entry is one step further on than the entry before.
    """
    length, columns = chunks.shape[:2]
    table = [places(chunks[:, column]) for column in range(columns)]
    real, padding = [], np.ones((length, columns), dtype=bool)
    for column, entries in enumerate(table):
        first = entries[0]
        n_real = next((i for i in range(1, length) if entries[i] == first), length)
        assert entries[:n_real] == [(first[0], first[1] + i, *first[2:]) for i in range(n_real)], "no neighbouring steps"
        assert set(entries[n_real:]) <= {first}
        padding[:n_real, column] = False
        real.append(entries[:n_real])
    return real, padding


def check_chunk(script: Script, expected: list[list[Expected]], entries: list[tuple[int, ...]]) -> None:
    for env, number, *_ in entries[1:]:
        assert not expected[env][number].start, "an episode starts inside a chunk"
        assert not joins(script, env, number), "an agent joins inside a chunk"


def counts(script: Script, expected: list[list[Expected]], env: int, number: int, agent: int) -> bool:
    return script.there(env, number)[agent] and expected[env][number].end != "lost"


def all_steps(script: Script, rollout: Rollout) -> list[tuple[int, int]]:
    return list(itertools.product(range(script.n_envs), range(rollout.first, rollout.first + script.n_steps)))


# ---------------------------------------------------------------- steps


@for_all_scripts(22)
def test_the_actor_learns_from_every_step_once_per_epoch(script: Script) -> None:
    expected = simulate(script)
    for rollout in rollouts(script):
        buffer, rng = evaluate(rollout), np.random.default_rng(script.seed)
        length = min(script.sequence_length, script.n_steps)
        for _ in range(2):
            seen: Counter[tuple[int, int, int]] = Counter()
            batches = list(buffer.actor_batches(length, script.batch_size, rng))
            assert len(batches) <= script.n_batches
            for batch in batches:
                chunks, padding = real_entries(batch.obs.numpy())
                assert not batch.weights.numpy()[padding].any(), "padding counts"
                for column, entries in enumerate(chunks):
                    check_chunk(script, expected, entries)
                    for i, (env, number, agent, last) in enumerate(entries):
                        assert not last
                        seen[env, number, agent] += 1
                        check_actor_entry(script, expected, rollout, batch, (i, column), (env, number, agent))
            assert seen == Counter((*step, agent) for step in all_steps(script, rollout) for agent in range(script.n_agents))


def check_actor_entry(
    script: Script,
    expected: list[list[Expected]],
    rollout: Rollout,
    batch: Any,
    entry: tuple[int, int],
    place: tuple[int, int, int],
) -> None:
    env, number, agent = place
    t = number - rollout.first
    decision, observation = rollout.steps[t].decision, rollout.steps[t].observation
    assert batch.actions[entry] == decision.actions[env, agent]
    assert batch.agent_skills[entry] == decision.state.agent_skills[env, agent]
    assert batch.old_log_probs[entry] == decision.log_probs[env, agent]
    assert batch.advantages[entry] == rollout.model.rollout_buffer.advantages[t, env, agent]
    assert batch.weights[entry] == counts(script, expected, env, number, agent)
    assert (batch.action_masks is not None) == script.action_masks
    if batch.action_masks is not None:
        assert batch.action_masks[entry].tolist() == observation["action_mask"][env, agent].astype(bool).tolist()
    if entry[0] == 0:
        np.testing.assert_array_equal(batch.hidden[entry[1]], decision.hidden[env, agent])
        came = number > 0 and script.there(env, number)[agent] and not script.there(env, number - 1)[agent]
        if expected[env][number].start or came:
            assert not batch.hidden[entry[1]].any(), "a memory of another life"


@for_all_scripts(30)
def test_the_critic_learns_from_every_step_once_per_epoch(script: Script) -> None:
    expected = simulate(script)
    for rollout in rollouts(script):
        buffer, rng = evaluate(rollout), np.random.default_rng(script.seed)
        length = min(script.sequence_length, script.n_steps)
        for _ in range(2):
            seen: Counter[tuple[int, int]] = Counter()
            for batch in buffer.critic_batches(length, script.batch_size, rng):
                chunks, padding = real_entries(batch.state.numpy())
                weights = np.broadcast_to(batch.weights.numpy(), batch.returns.shape)
                assert not weights[padding].any(), "padding counts"
                for column, entries in enumerate(chunks):
                    check_chunk(script, expected, entries)
                    for i, (env, number, _, last) in enumerate(entries):
                        t = number - rollout.first
                        state = rollout.steps[t].decision.state
                        seen[env, number] += 1
                        assert not last
                        assert batch.team_skill[i, column] == state.team_skill[env]
                        np.testing.assert_array_equal(batch.agent_skills[i, column], state.agent_skills[env])
                        np.testing.assert_array_equal(batch.returns[i, column], buffer.returns[t, env])
                        np.testing.assert_array_equal(batch.old_values[i, column], buffer.value_outputs[t, env])
                        wanted = [counts(script, expected, env, number, agent) for agent in range(script.n_agents)]
                        assert weights[i, column].tolist() == wanted
                    first = entries[0]
                    np.testing.assert_array_equal(
                        batch.hidden[column], buffer.critic_hidden[first[1] - rollout.first, first[0]]
                    )
                    assert not (expected[first[0]][first[1]].start and batch.hidden[column].any())
            assert seen == Counter(all_steps(script, rollout))


@for_all_scripts(18)
def test_discriminators_see_the_true_successor_of_every_step_once(script: Script) -> None:
    expected = simulate(script)
    for rollout in rollouts(script):
        buffer = rollout.model.rollout_buffer
        buffer.finish(rollout.model._last_obs)
        pairs = buffer.discriminator_data()
        wanted = []
        for t, env in itertools.product(range(script.n_steps), range(script.n_envs)):
            end = expected[env][rollout.first + t].end
            number = rollout.first + t + (end != "lost")
            wanted.append((env, number, 0, int(end in ("terminated", "truncated"))))
            row = t * script.n_envs + env
            state = rollout.steps[t].decision.state
            assert pairs.team_skill[row] == state.team_skill[env]
            np.testing.assert_array_equal(pairs.agent_skills[row], state.agent_skills[env])
            assert [place[2] for place in places(pairs.obs[row])] == list(range(script.n_agents))
            assert {place[:2] + place[3:] for place in places(pairs.obs[row])} == {wanted[-1][:2] + wanted[-1][3:]}
            before, after = script.there(env, rollout.first + t), script.there_after(env, rollout.first + t, end)
            known = end != "lost"
            weights = [known and a and b for a, b in zip(before, after, strict=True)]
            assert (pairs.team_weights is None or bool(pairs.team_weights[row])) == known
            assert ([True] * len(weights) if pairs.agent_weights is None else pairs.agent_weights[row].tolist()) == weights
        assert places(pairs.state) == wanted


# ---------------------------------------------------------------- assignments


@for_all_scripts(22)
def test_skills_are_assigned_exactly_when_their_timers_say(script: Script) -> None:
    expected = simulate(script)
    running: dict[int, list[int]] = {}
    for rollout in rollouts(script):
        for t, step in enumerate(rollout.steps):
            decision = step.decision
            for env in range(script.n_envs):
                now = expected[env][rollout.first + t]
                assert decision.assigned[env] == now.assigned
                assert decision.state.steps_left[env] == now.steps_left
                skills = [int(decision.state.team_skill[env]), *decision.state.agent_skills[env].tolist()]
                if now.assigned:
                    running[env] = skills
                assert running[env] == skills, "skills changed while they ran"
                assert now.assigned or not decision.skill_log_probs[env].any()
        np.testing.assert_array_equal(rollout.model.rollout_buffer.assigned, [s.decision.assigned for s in rollout.steps])


@for_all_scripts(22)
def test_the_coordinator_learns_from_every_assignment_once(script: Script) -> None:
    expected = simulate(script)
    for rollout in rollouts(script):
        buffer = evaluate(rollout)
        wanted = [step for step in all_steps(script, rollout) if expected[step[0]][step[1]].assigned]
        batch = buffer.coordinator_batch()
        if batch is None:
            assert not wanted
            continue
        found = places(batch.state)
        assert Counter(found) == Counter((*step, 0, 0) for step in wanted)
        for row, (env, number, *_) in enumerate(found):
            t, now = number - rollout.first, expected[env][number]
            decision = rollout.steps[t].decision
            assert places(batch.obs[row]) == [(env, number, agent, 0) for agent in range(script.n_agents)]
            assert batch.team_skill[row] == decision.state.team_skill[env]
            np.testing.assert_array_equal(batch.agent_skills[row], decision.state.agent_skills[env])
            np.testing.assert_array_equal(batch.old_log_probs[row], decision.skill_log_probs[env])
            np.testing.assert_array_equal(batch.advantages[row], buffer.skill_advantages[t, env])
            np.testing.assert_array_equal(batch.returns[row], buffer.skill_returns[t, env])
            np.testing.assert_array_equal(batch.old_values[row], buffer.skill_value_outputs[t, env])
            there, known = script.there(env, number), now.end != "lost"
            assert all(there) if batch.agent_mask is None else batch.agent_mask[row].tolist() == there
            weights = [known, *(known and agent for agent in there)]
            assert all(weights) if batch.weights is None else batch.weights[row].tolist() == weights


@for_all_scripts(22)
def test_every_segment_ends_once_and_for_the_right_reason(script: Script) -> None:
    expected = simulate(script)
    running = np.zeros(script.n_envs, dtype=int)
    for rollout in rollouts(script):
        buffer = rollout.model.rollout_buffer
        buffer.finish(rollout.model._last_obs)
        found = buffer.segment_end_counts()
        assert set(found) == {"interval", "terminated", "truncated", "rollout_end"}
        here = [rows[rollout.first : rollout.first + script.n_steps] for rows in expected]
        for reason, per_env in found.items():
            assert per_env.tolist() == [sum(row.reason == reason for row in rows) for rows in here], reason
        begun = np.array([sum(row.assigned for row in rows) for rows in here])
        carried = np.array([not rows[0].assigned for rows in here], dtype=int)
        np.testing.assert_array_equal(sum(found.values()), begun + carried)
        np.testing.assert_array_equal(carried, 0 if script.mode == "reassign" else running)
        running = found["rollout_end"]


# ---------------------------------------------------------------- on-policy


@for_all_scripts(20)
def test_every_ratio_is_one_before_the_first_gradient_step(script: Script) -> None:
    model = None
    for rollout in rollouts(script):
        if model is not None:
            assert model.logger.name_to_value["sync/actor_first_ratio_deviation"] < 1e-5
            assert model.logger.name_to_value["sync/coordinator_first_ratio_deviation"] < 1e-5
        model, buffer = rollout.model, evaluate(rollout)
        length, rng = min(script.sequence_length, script.n_steps), np.random.default_rng(script.seed)
        with th.no_grad():
            for batch in buffer.actor_batches(length, script.batch_size, rng):
                log_probs, _ = model.policy.actor.evaluate(
                    batch.obs, batch.agent_skills, batch.hidden, batch.actions, batch.action_masks
                )
                deviation = ((log_probs - batch.old_log_probs).exp() - 1.0).abs() * batch.weights
                assert float(deviation.max()) < 1e-5
            assigned = buffer.coordinator_batch()
            if assigned is not None:
                scored = model.policy.coordinator.evaluate(
                    assigned.state, assigned.obs, assigned.team_skill, assigned.agent_skills, assigned.agent_mask
                )
                ratios = (scored.log_probs - assigned.old_log_probs).exp()
                deviation = (ratios - 1.0).abs() * (1.0 if assigned.weights is None else assigned.weights)
                assert float(deviation.max()) < 1e-5


@for_all_scripts(18)
def test_all_samples_of_a_batch_are_of_one_version_and_every_environment_gives_as_many(script: Script) -> None:
    for rollout in rollouts(script, before_storing=offer_what_must_be_refused):
        model, gate = rollout.model, rollout.model._gate
        assert {step.decision.policy_version for step in rollout.steps} == {rollout.number} == {model.policy_version}
        assert gate.contributions.tolist() == [script.n_steps] * script.n_envs
        assert gate.contribution_balance == 1.0
        assert model.num_timesteps == (rollout.number + 1) * script.n_steps * script.n_envs
        kept = unchanged(model)
        step = rollout.steps[-1]
        nothing = (model._last_obs, step.rewards, np.zeros(script.n_envs, dtype=bool), [{}] * script.n_envs)
        with pytest.raises(SyncError, match="collection is disabled"):
            model.store_step(step.decision, *nothing)
        gate.collecting = True
        with pytest.raises(SyncError, match=f"already holds its {script.n_steps * script.n_envs} samples"):
            model.store_step(step.decision, *nothing)
        gate.collecting = False
        assert unchanged(model) == kept


def offer_what_must_be_refused(model: Any, decision: Any, result: Any) -> None:
    version, kept = model.policy_version, unchanged(model)
    for other in (version - 1, version + 1):
        with pytest.raises(SyncError, match=f"version {other} arrived, but this rollout belongs to version {version}"):
            model.store_step(decision._replace(policy_version=other), *result)
    with pytest.raises(SyncError, match="while samples are collected"):
        model.sync_update()
    assert unchanged(model) == kept


def unchanged(model: Any) -> tuple[Any, ...]:
    buffer = model.rollout_buffer
    stored = (buffer.pos, len(buffer.terminal_rows), buffer.actions[: buffer.pos].tobytes())
    return (*stored, model.num_timesteps, model.policy_version, model._gate.contributions.tolist(), id(model._last_obs))


# ---------------------------------------------------------------- the scripts themselves


def test_scripts_hold_what_the_properties_are_about() -> None:
    """The properties above would be hollow if nothing ever joined, was lost, or ran on into the next rollout."""
    happened: Counter[str] = Counter()

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(scripts())
    def look(script: Script) -> None:
        for env, rows in enumerate(simulate(script)):
            for number, row in enumerate(rows):
                step = number % script.n_steps
                happened.update([str(row.end), str(row.reason)])
                happened["carried"] += number > 0 and step == 0 and not row.assigned
                happened["joins"] += joins(script, env, number) and not row.start
                happened["lost at its assignment"] += row.end == "lost" and row.assigned and not row.start
                happened["whole interval at the end"] += row.reason == "interval" and step == script.n_steps - 1
                happened["assigned without reward"] += (
                    row.assigned and not script.rewards[env][number % len(script.rewards[env])]
                )

    look()
    for what in (
        "terminated", "truncated", "lost", "interval", "rollout_end", "carried", "joins", "lost at its assignment",
        "whole interval at the end", "assigned without reward",
    ):  # fmt: skip
        assert happened[what] >= 5, what
