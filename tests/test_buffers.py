"""The rollout buffer and its gate: nothing stale, nothing lost, nothing twice."""

import numpy as np
import pytest
import torch as th
from teams import make_model

from hmasd_sb3.sync import SyncError, SyncGate
from hmasd_sb3.type_aliases import SegmentEnd


def filled(**kwargs):
    """A model whose buffer holds one complete rollout that was not learnt from yet."""
    model = make_model(**kwargs)
    _, callback = model._setup_learn(1000)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def finished(**kwargs):
    model = filled(**kwargs)
    model.rollout_buffer.finish(model._last_obs)
    return model


# ---------------------------------------------------------------- the gate


def test_gate_counts_environment_steps_not_agent_steps():
    model = filled(env_kwargs={"n_agents": 3})
    assert model._gate.required_samples == 12 * 4
    assert model._gate.samples_collected == 48
    assert model.num_timesteps == 48
    assert model._gate.contributions.tolist() == [12] * 4


def test_gate_refuses_stale_surplus_and_out_of_turn_samples():
    gate = SyncGate(n_envs=2, n_steps=3)
    with pytest.raises(SyncError, match="collection is disabled"):
        gate.admit(0)
    gate.open()
    with pytest.raises(SyncError, match="version 7 arrived, but this rollout belongs to version 0"):
        gate.admit(7)
    with pytest.raises(SyncError, match="while samples are collected"):
        gate.begin_update()
    for _ in range(3):
        gate.admit(0)
    assert gate.should_sync()
    with pytest.raises(SyncError, match="already holds its 6 samples"):
        gate.admit(0)
    gate.close()
    with pytest.raises(SyncError, match="collection is disabled"):
        gate.admit(0)
    gate.begin_update()
    gate.finish_update()
    assert gate.policy_version == 1
    gate.open()
    with pytest.raises(SyncError, match="version 0 arrived, but this rollout belongs to version 1"):
        gate.admit(0)


def test_update_needs_a_complete_batch():
    model = make_model()
    model._setup_learn(1000)
    with pytest.raises(SyncError, match="only 0 were collected"):
        model.sync_update()
    model.enable_data_collection()
    model.disable_data_collection()
    with pytest.raises(SyncError, match="An update needs 48 samples"):
        model.sync_update()


def test_the_model_refuses_a_decision_of_an_older_version():
    model = filled()
    decision = model.decide()
    model.sync_update()
    model.enable_data_collection()
    step = model.env.step(model.policy.to_env_actions(decision.actions))
    with pytest.raises(SyncError, match="version 0 arrived, but this rollout belongs to version 1"):
        model.store_step(decision, *step)


def test_version_counts_updates_and_all_epochs_see_the_rollout():
    model = make_model(n_epochs=3, target_kl=None, skill_target_kl=None, batch_size=24)
    model.learn(48 * 4)
    assert model.policy_version == 4
    logged = model.logger.name_to_value
    assert logged["train/actor_gradient_steps"] == 3 * 2, "3 epochs of 2 minibatches"
    assert logged["train/coordinator_epochs"] == 2


# ---------------------------------------------------------------- storage


def test_successor_is_the_terminal_observation_not_the_reset_one():
    model = filled(env_kwargs={"p_terminate": 0.3, "p_truncate": 0.3})
    buffer = model.rollout_buffer
    buffer.finish(model._last_obs)
    assert len(buffer.terminal_rows) > 5
    for key in ("obs", "state"):
        following = buffer.successors(key)
        ended = buffer.episode_ends
        np.testing.assert_array_equal(following[~ended], buffer.observations[key][1:][~ended])
        for row in buffer.terminal_rows:
            np.testing.assert_array_equal(following[row.step, row.env], row.observation[key])
            assert not np.allclose(following[row.step, row.env], buffer.observations[key][row.step + 1, row.env])


def test_an_end_without_its_last_observation_is_refused():
    model = make_model()
    model._setup_learn(1000)
    model.enable_data_collection()
    decision = model.decide()
    obs, rewards, _, infos = model.env.step(model.policy.to_env_actions(decision.actions))
    with pytest.raises(SyncError, match="terminal_observation"):
        model.store_step(decision, obs, rewards, np.ones(4, dtype=bool), [{} for _ in infos])


def test_segment_ends_say_why_and_every_assignment_has_one_end():
    model = finished(skill_interval=3, env_kwargs={"p_terminate": 0.1, "p_truncate": 0.1})
    buffer = model.rollout_buffer
    ends = buffer.segment_ends
    assert ((ends == SegmentEnd.TERMINATED) == buffer.terminated).all()
    assert ((ends == SegmentEnd.TRUNCATED) == buffer.truncated).all()
    assert (ends[-1] != SegmentEnd.NONE).all()
    for b in range(buffer.n_envs):
        starts = np.flatnonzero(buffer.assigned[:, b])
        stops = np.flatnonzero(ends[:, b])
        assert len(starts) == len(stops)
        assert (starts <= stops).all()
        assert (starts[1:] == stops[:-1] + 1).all()
        lengths = stops - starts + 1
        assert (lengths <= 3).all()
        assert (lengths[ends[stops, b] == SegmentEnd.INTERVAL] == 3).all()
    counts = buffer.segment_end_counts()
    assert sum(c.sum() for c in counts.values()) == buffer.assigned.sum()


@pytest.mark.parametrize("mode", ["continue", "reassign"])
def test_running_skills_at_the_rollouts_end(mode):
    model = make_model(skill_interval=5, skill_at_rollout_end=mode, env_kwargs={"p_terminate": 0, "p_truncate": 0})
    _, callback = model._setup_learn(1000)
    for _ in range(2):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
        last = model.skill_state
        model.sync_update()
    steps = np.flatnonzero(model.rollout_buffer.assigned[:, 0]).tolist()
    # 12 steps hold assignments at 0, 5, 10; the third skill has 3 steps left when the first rollout ends
    assert steps == ([3, 8] if mode == "continue" else [0, 5, 10])
    assert model.rollout_buffer.segment_ends[-1, 0] == SegmentEnd.ROLLOUT_END
    assert last.steps_left[0] == (1 if mode == "continue" else 3)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("length", [1, 4, 5, 12, 100])
def test_chunks_hold_every_step_once_and_no_episode_start_inside(length):
    buffer = finished(env_kwargs={"p_terminate": 0.15, "p_truncate": 0.15}).rollout_buffer
    table, real = buffer.chunks(length)
    assert sorted(table[real].tolist()) == list(range(48))
    starts = buffer.episode_starts.reshape(-1)
    for row, ok in zip(table, real, strict=True):
        steps = row[ok]
        assert (np.diff(steps) == buffer.n_envs).all(), "consecutive steps of one environment"
        assert not starts[steps[1:]].any()


@pytest.mark.parametrize("batch_size", [48, 24, 12, 6])
def test_minibatches_cover_the_rollout_exactly_once(batch_size):
    buffer = finished(env_kwargs={"p_terminate": 0.2}).rollout_buffer
    buffer.advantages[:] = np.arange(96, dtype=np.float32).reshape(12, 4, 2)
    seen, sizes = [], []
    for batch in buffer.actor_batches(4, batch_size, np.random.default_rng(0)):
        kept = batch.weights.bool()
        seen += batch.advantages[kept].tolist()
        sizes.append(int(kept.sum()) // 2)
    assert sorted(seen) == list(range(96))
    assert len(sizes) == 48 // batch_size
    assert max(sizes) <= batch_size + 4


def test_actor_batch_lines_up_with_the_buffer():
    """Whatever a batch holds at one place was stored together: skills, actions and observations of one agent and step."""
    model = finished()
    buffer = model.rollout_buffer
    stored = {}
    for t, b, n in np.ndindex(12, 4, 2):
        stored[buffer.observations["obs"][t, b, n].tobytes()] = (
            int(buffer.agent_skills[t, b, n]),
            int(buffer.actions[t, b, n]),
            float(buffer.log_probs[t, b, n]),
        )
    for batch in buffer.actor_batches(4, 24, np.random.default_rng(1)):
        for place in np.ndindex(*batch.actions.shape):
            expected = stored[batch.obs[place].numpy().tobytes()]
            assert expected == (int(batch.agent_skills[place]), int(batch.actions[place]), float(batch.old_log_probs[place]))


def test_coordinator_sees_the_start_of_each_segment():
    model = finished(skill_interval=4, env_kwargs={"p_terminate": 0.1})
    buffer = model.rollout_buffer
    batch = buffer.coordinator_batch()
    assert len(batch.team_skill) == buffer.assigned.sum()
    for row, (t, b) in enumerate(np.argwhere(buffer.assigned)):
        np.testing.assert_array_equal(batch.state[row], buffer.observations["state"][t, b])
        np.testing.assert_array_equal(batch.obs[row], buffer.observations["obs"][t, b])
        np.testing.assert_array_equal(batch.agent_skills[row], buffer.agent_skills[t, b])


def test_assignments_without_reward_are_kept():
    model = finished(skill_interval=4, env_kwargs={"reward": 0.0})
    assert len(model.rollout_buffer.coordinator_batch().team_skill) == model.rollout_buffer.assigned.sum() >= 12


def test_rollout_without_an_assignment_gives_no_batch_and_learning_goes_on():
    model = make_model(skill_interval=100, env_kwargs={"p_terminate": 0, "p_truncate": 0})
    model.learn(48 * 3)
    assert model.policy_version == 3
    assert model.rollout_buffer.coordinator_batch() is None


def test_discriminators_use_their_own_inputs_where_the_game_gives_them():
    from hmasd_sb3 import make_team_vec_env

    env = make_team_vec_env("AliceAndBob-v0", n_envs=2, seed=0)
    from hmasd_sb3 import HMASD

    model = HMASD("MlpPolicy", env, n_steps=4, batch_size=8, device="cpu")
    model._setup_learn(8)
    pairs = model.rollout_buffer.discriminator_data()
    assert pairs.state.shape == (8, env.observation_space["discriminator_state"].shape[0])
    assert pairs.obs.shape == (8, *env.observation_space["discriminator_obs"].shape)
    assert isinstance(pairs.obs, th.Tensor)
