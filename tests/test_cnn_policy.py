"""Agents that see pictures: every network reads them through SB3's feature extractors, whatever the layout."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, make_model, parameters_of, random_team_vec_env, randomise

from hmasd_sb3 import HMASD
from hmasd_sb3.normalization import InputScaler
from hmasd_sb3.policies import HMASDPolicy, TeamSpaceError
from hmasd_sb3.policies.features import Features
from hmasd_sb3.policies.policy import HMASDCnnPolicy
from hmasd_sb3.rollouts import evaluate_rollout

SETTINGS: dict[str, Any] = {
    **FAST,
    "n_steps": 8,
    "policy_kwargs": {"hidden_size": 16, "features_extractor_kwargs": {"features_dim": 8}},
}


class Small(NatureCNN):
    """An extractor of one's own."""


class PictureTeam(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Two agents see noise. Ends by a time limit."""

    metadata = {"render_modes": []}
    render_mode = None

    def __init__(self, shape: tuple[int, ...] = (36, 40, 3), state: str = "picture") -> None:
        self.shape, self.state = shape, state
        picture = spaces.Box(0, 255, (36, 36, 2), np.uint8)
        self.observation_space = spaces.Dict(
            obs=spaces.Box(0, 255, (2, *shape), np.uint8),
            state=picture if state == "picture" else spaces.Box(-1.0, 1.0, (3,), np.float32),
        )
        self.action_space = spaces.MultiDiscrete([3, 3])
        self.clock = 0

    def _observe(self) -> dict[str, np.ndarray]:
        # Drawn from the generator, as sampling from the space would draw from another one.
        obs = self.np_random.integers(256, size=(2, *self.shape), dtype=np.uint8)
        if self.state == "picture":
            return {"obs": obs, "state": self.np_random.integers(256, size=(36, 36, 2), dtype=np.uint8)}
        return {"obs": obs, "state": self.np_random.random(3).astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        self.clock += 1
        return self._observe(), float(action.sum() == 0), False, self.clock == 6, {}


def make(policy: str = "CnnPolicy", **kwargs: Any) -> HMASD:
    env = DummyVecEnv([lambda: Monitor(PictureTeam(**kwargs)) for _ in range(2)])
    settings = SETTINGS if policy == "CnnPolicy" else FAST
    return HMASD(policy, env, **settings)


@pytest.mark.parametrize("shape", [(36, 40, 3), (3, 36, 40), (36, 40)])
@pytest.mark.parametrize("state", ["picture", "vector"])
def test_it_learns_and_is_evaluated_in_every_layout(shape: tuple[int, ...], state: str, tmp_path: Any) -> None:
    model = make(shape=shape, state=state)
    before = parameters_of(model)
    model.learn(32, callback=EvalCallback(Monitor(PictureTeam(shape, state)), n_eval_episodes=1, eval_freq=8, verbose=0))
    after = parameters_of(model)
    unmoved = {name for name in before if th.equal(before[name], after[name])}
    assert not {name for name in unmoved if "extractor" in name}
    assert model.logger.name_to_value["sync/actor_first_ratio_deviation"] < 1e-4
    model.save(tmp_path / "model.zip")
    loaded = HMASD.load(tmp_path / "model.zip", env=model.env)
    observation = model.env.reset()
    for got, expected in zip(
        loaded.predict(observation, deterministic=True)[1], model.predict(observation, deterministic=True)[1], strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    evaluate_policy(loaded, DummyVecEnv([lambda: Monitor(PictureTeam(shape, state))]), n_eval_episodes=1)


def test_every_network_has_its_own_extractor() -> None:
    names = {name for name, _ in make().policy.named_parameters() if "extractor" in name}
    owners = {name.split(".extractor")[0] for name in names}
    assert owners == {
        "coordinator.state_features",
        "coordinator.obs_features",
        "actor.features",
        "critic.features",
        "discriminators.state_features",
        "discriminators.obs_features",
    }


def test_pictures_get_their_shape_and_channels_back() -> None:
    class Mean(BaseFeaturesExtractor):
        """Means over the rows of each channel: shows which axis is which."""

        def __init__(self, space: spaces.Box) -> None:
            assert space.shape == (3, 5, 4)
            super().__init__(space, 15)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return observations.mean(-1).flatten(1)

    picture = th.rand(7, 2, 5, 4, 3)
    last = Features(spaces.Box(0, 255, (5, 4, 3), np.uint8), Mean)
    got = last(picture.flatten(2))
    th.testing.assert_close(got, picture.mean(3).transpose(-1, -2).flatten(2))
    # Without gradients, rows are read in parts; with them at once.
    many = th.rand(3000, 60)
    with th.no_grad():
        in_parts = last(many)
    th.testing.assert_close(in_parts, last(many))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((84, 84, 96), 96), ((60, 40, 40), 60), ((84, 84, 3), 3), ((3, 84, 84), 3), ((36, 40, 3), 3), ((3, 36, 40), 3)],
)
def test_channels_are_found_even_where_many_agents_pictures_are_joined(shape: tuple[int, ...], channels: int) -> None:
    features = Features(spaces.Box(0, 255, shape, np.uint8), NatureCNN)
    assert features.extractor.cnn[0].in_channels == channels


def test_many_pictures_are_read_in_parts_unless_gradients_are_wanted() -> None:
    """A whole rollout at once would need gigabytes; gradients need all of a minibatch anyway."""
    rows = []

    class Counting(BaseFeaturesExtractor):
        def __init__(self, space: spaces.Box) -> None:
            super().__init__(space, 1)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            rows.append(len(observations))
            return observations.flatten(1)[:, :1]

    features = Features(spaces.Box(0, 255, (2, 2), np.uint8), Counting)
    features(th.rand(1500, 4))
    with th.no_grad():
        features(th.rand(1500, 4))
    assert rows == [1500, 1024, 476]


def test_the_policy_alone_is_saved_with_its_extractor(tmp_path: Any) -> None:
    kwargs = {"hidden_size": 16, "features_extractor_class": Small, "features_extractor_kwargs": {"features_dim": 8}}
    model = HMASD("CnnPolicy", make().env, **{**SETTINGS, "policy_kwargs": kwargs})
    assert type(model.policy.actor.features.extractor) is Small
    model.policy.save(tmp_path / "policy.pth")
    loaded = HMASDCnnPolicy.load(tmp_path / "policy.pth")
    for name, value in model.policy.state_dict().items():
        assert th.equal(loaded.state_dict()[name], value), name


def test_each_agent_reads_its_own_picture() -> None:
    model = make()
    observation = model.env.reset()
    with th.no_grad():
        tensors = {key: th.as_tensor(value) for key, value in observation.items()}
        flat = model.policy.flat_obs(tensors)
        swapped = model.policy.flat_obs({**tensors, "obs": tensors["obs"].flip(1)})
        features = model.policy.actor.features
        th.testing.assert_close(features(flat).flip(1), features(swapped))
        assert (features(flat)[:, 0] - features(flat)[:, 1]).abs().max() > 1e-4


def test_pictures_are_scaled_alike_wherever_they_are_read() -> None:
    """Bytes that reach a network unscaled, in an update or at an episode's end, would be valued as another picture."""
    env = DummyVecEnv([lambda: Monitor(PictureTeam()) for _ in range(2)])
    kwargs = {"gae_lambda": 0.0, "normalize_advantage": False, "critic_chance_offset": False, "skill_timeout_bootstrap": True}
    model = HMASD("CnnPolicy", env, **{**SETTINGS, **kwargs})
    randomise(model, scale=0.05)
    _, callback = model._setup_learn(100)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
    policy, buffer = model.policy, model.rollout_buffer
    buffer.finish(model._last_obs)
    evaluate_rollout(policy, buffer, model._critic_hidden, model._return_settings())
    assert buffer.truncated[5].all()
    with th.no_grad():
        for critic_batch in buffer.critic_batches(4, 16, np.random.default_rng(0)):
            values = policy.critic.evaluate(*critic_batch[:4])
            kept = critic_batch.weights.bool().expand_as(values)
            th.testing.assert_close(values[kept], critic_batch.old_values[kept], atol=1e-4, rtol=0)
        batch = buffer.coordinator_batch()
        scored = policy.coordinator.evaluate(*batch[:4])
        th.testing.assert_close(scored.values, batch.old_values, atol=1e-4, rtol=0)
        th.testing.assert_close(scored.log_probs, batch.old_log_probs, atol=1e-4, rtol=0)
        state, obs = (th.from_numpy(buffer.successors(key)).flatten(0, 1) for key in ("state", "obs"))
        th.testing.assert_close(buffer.discriminator_data().state, state.flatten(1))
        th.testing.assert_close(buffer.discriminator_data().obs, obs.flatten(2))
        for row in buffer.terminal_rows:
            b = row.env
            last_state, last_obs = (th.tensor(row.observation[key]).float()[None] / 255 for key in ("state", "obs"))
            seen = th.from_numpy(buffer.observations["state"][:6, b : b + 1]).float().flatten(2) / 255
            skills = [th.from_numpy(a[:6, b : b + 1]) for a in (buffer.team_skill, buffer.agent_skills)]
            _, _, after = policy.critic.rollout(seen, *skills, th.zeros(1, 16), th.zeros(6, 1, dtype=th.bool))
            follows = policy.critic.step(last_state.flatten(1), skills[0][-1], skills[1][-1], after[-1])[0].numpy()
            expected = buffer.agent_rewards[5, b] + 0.99 * follows - buffer.values[5, b]
            np.testing.assert_allclose(buffer.advantages[5, b], expected, atol=1e-4)
            follows = policy.coordinator.values(last_state.flatten(1), last_obs.flatten(2))[0].numpy()
            expected = buffer.rewards[5, b] + 0.99 * follows - buffer.skill_values[5, b]
            np.testing.assert_allclose(buffer.skill_advantages[5, b], expected, atol=1e-4)


def test_mlp_policy_takes_pictures_flat() -> None:
    model = make("MlpPolicy")
    model.learn(24)
    assert not any("extractor" in name for name, _ in model.policy.named_parameters())
    assert model.policy.spec.state_dim == 36 * 36 * 2


def test_discriminators_see_bytes_scaled_by_their_known_range() -> None:
    scaler = make().policy.discriminators.obs_scaler
    bytes_ = th.tensor([0.0, 255.0]).repeat_interleave(36 * 40 * 3).view(2, -1)
    th.testing.assert_close(scaler(bytes_), (bytes_ > 0) * 2.0 - 1.0)


def test_unsuitable_pictures_and_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"NatureCNN cannot read observations of shape \(12, 12, 3\).*36 x 36"):
        make(shape=(12, 12, 3))
    with pytest.raises(TeamSpaceError, match=r"CnnPolicy is for pictures.*'MlpPolicy'"):
        HMASD("CnnPolicy", random_team_vec_env())
    for unknown in ("feature_extractor_class", "squash_output"):  # the second is one of SB3's, which does not reach it
        with pytest.raises(ValueError, match=rf"no '{unknown}'.*features_extractor_class"):
            HMASD("CnnPolicy", make().env, policy_kwargs={unknown: None})


def test_an_extractor_of_ones_own_reads_vectors_too() -> None:
    class Double(BaseFeaturesExtractor):
        def __init__(self, space: spaces.Box, factor: float = 2.0) -> None:
            super().__init__(space, 3)
            self.scale = th.nn.Parameter(th.tensor(factor))

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.scale * observations

    kwargs = {"hidden_size": 16, "features_extractor_class": Double, "features_extractor_kwargs": {"factor": 3.0}}
    model = make_model(policy_kwargs=kwargs)
    assert float(model.policy.actor.features.extractor.scale) == 3.0
    model.learn(100)
    assert float(model.policy.actor.features.extractor.scale) != 3.0
    assert float(model.policy.coordinator.obs_features.extractor.scale) != 3.0


def test_policy_kwargs_are_handed_on_past_a_mixin() -> None:
    class Mixin:
        pass

    class Own(Mixin, HMASDPolicy):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    model = HMASD(Own, random_team_vec_env(2), **{**FAST, "policy_kwargs": {"hidden_size": 8}})
    assert model.policy.hidden_size == 8
    with pytest.raises(ValueError, match="Did you mean 'hidden_size'"):
        HMASD(Own, random_team_vec_env(2), policy_kwargs={"hidden_siz": 8})


def counting(forward: Any, rows: list[int]) -> Any:
    """The same function, noting how many rows it is given."""

    def count(self: Any, inputs: th.Tensor) -> th.Tensor:
        rows.append(len(inputs))
        return forward(self, inputs)

    return count


def test_a_rollout_of_pictures_is_never_floats_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As floats it would be four times as large, several times over: gigabytes for an ordinary rollout."""
    monkeypatch.setattr("hmasd_sb3.policies.features._ROWS_AT_ONCE", 8)
    model = make()
    rows: dict[str, list[int]] = {}
    for name, network in (("critic", model.policy.critic.features), ("q_d", model.policy.discriminators.obs_features)):
        rows[name] = []
        network.extractor.register_forward_pre_hook(lambda _, inputs, name=name: rows[name].append(len(inputs[0])))
    _, callback = model._setup_learn(100)
    buffer = model.rollout_buffer
    model.collect_rollouts(model.env, callback, buffer, buffer.n_steps)
    buffer.finish(model._last_obs)
    pairs = buffer.discriminator_data()
    assert pairs.obs.dtype == pairs.state.dtype == th.uint8
    prepared: list[int] = []
    monkeypatch.setattr("hmasd_sb3.normalization.InputScaler.forward", counting(InputScaler.forward, prepared))
    evaluate_rollout(model.policy, buffer, model._critic_hidden, model._return_settings())
    assert sum(rows["q_d"]) == 8 * 2 * 2
    assert max(prepared) == 8
    assert max(rows["q_d"]) == max(rows["critic"]) == 8
