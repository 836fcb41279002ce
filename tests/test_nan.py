"""NaN and infinity, wherever they come from: named, nothing is learnt from them, and training stops or goes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from resumable import ResumableTeam, digest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from teams import FAST, RandomTeam, make_model, parameters_of, same

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.policies.policy import NETWORKS
from hmasd_sb3.validation import InvalidTransitionError

ROLLOUT = 48


class Poisoned:
    """Puts a value into one environment's answers, at one of its steps (0 is the reset), as often as allowed."""

    what, value, at, times, steps = "obs", np.nan, -1, 1, 0

    def _spoil(self, obs: Any) -> Any:
        if self.steps == self.at and self.times > 0:
            self.times -= 1
            obs[self.what][..., 0] = self.value
        return obs

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)  # type: ignore[misc]
        return (self._spoil(obs) if self.steps == 0 else obs), info

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)  # type: ignore[misc]
        self.steps += 1
        if self.what == "reward":
            if self.steps == self.at and self.times > 0:
                self.times -= 1
                reward = float(self.value)
        else:
            obs = self._spoil(obs)
        return obs, reward, *rest


class PoisonedTeam(Poisoned, RandomTeam): ...


class PoisonedResumable(Poisoned, ResumableTeam): ...


def poisoned(kind: type = PoisonedTeam, ends: bool = False, **poison: Any) -> DummyVecEnv:
    """Four environments, of which the third is poisoned."""

    def make(index: int) -> Callable[[], Any]:
        def create() -> Any:
            env = kind(p_terminate=float(ends), p_truncate=0.0 if ends else 0.1)
            for name, value in poison.items() if index == 2 else ():
                setattr(env, name, value)
            return env

        return create

    env = DummyVecEnv([make(index) for index in range(4)])
    env.seed(0)
    return env


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------ what environments return


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("what", "at", "ends"),
    [(what, at, ends) for what in ("obs", "state") for at, ends in ((0, False), (15, False), (15, True))]
    + [("reward", 15, False), ("reward", 15, True)],
)
def test_environments_are_named(tmp_path: Path, what: str, at: int, ends: bool, value: float) -> None:
    env = poisoned(what=what, value=value, at=at, ends=ends)
    model = HMASD("MlpPolicy", env, **FAST)
    seen: dict[str, Any] = {}

    class Remember(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.update(parameters=parameters_of(model), files=files(tmp_path))

        def _on_step(self) -> bool:
            return True

    place = "the reward" if what == "reward" else f"NaN or infinity in {'terminal_' if ends else ''}observation '{what}'"
    with pytest.raises(InvalidTransitionError, match=f"Environment 2 returned {place}.* at timestep {4 * at}"):
        model.learn(10 * ROLLOUT, callback=[TrainingCheckpoint(tmp_path, ROLLOUT), Remember()])
    assert same(parameters_of(model), seen.get("parameters", parameters_of(model)))
    assert files(tmp_path) == seen.get("files", {})
    model.save(tmp_path / "still_good")
    before = model.num_timesteps
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)  # the poison was given once
    assert model.num_timesteps == before + 2 * ROLLOUT


@pytest.mark.parametrize(
    ("what", "at", "message"),
    [
        ("obs", 13, r"The actor gave NaN or infinity in environment 2 at timestep 52"),
        ("state", 13, r"Update 2, timestep 96: The critic's values hold NaN or infinity, first in environment 2 at step"),
        ("reward", 15, r"Update 2, timestep 96: The low-level rewards hold NaN or infinity, first in environment 2 at step"),
    ],
)
def test_what_overflows_is_named(tmp_path: Path, what: str, at: int, message: str) -> None:
    value = 3.0e38
    env = poisoned(what=what, value=value, at=at)
    model = HMASD("MlpPolicy", env, **{**FAST, "skill_interval": 50, "gamma": 1.0})
    if what == "reward":
        model.team_reward_coef = 2.0
        model._setup_model()
    with th.no_grad():
        for network in (model.policy.actor, model.policy.critic):
            for name, parameter in network.named_parameters():
                if name.endswith("weight"):
                    parameter.mul_(3.0)
    with pytest.raises(NonFiniteError, match=message):
        model.learn(10 * ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT))
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() == folder.path_for(48)
    model.save(tmp_path / "still_good")  # neither parameters nor value statistics were touched
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)
    for network in NETWORKS:
        assert bool(th.isfinite(model.policy.flat(network).vector).all())


# ------------------------------------------------------------------ losses and gradients


def poison_advantages(model: HMASD) -> None:
    model.rollout_buffer.advantages[3, 1, 0] = np.nan


def poison_actor_log_probs(model: HMASD) -> None:
    model.rollout_buffer.log_probs[3, 1, 0] = -np.inf


def poison_returns(model: HMASD) -> None:
    model.rollout_buffer.returns[3, 1, 0] = np.inf


def poison_skill_advantages(model: HMASD) -> None:
    buffer = model.rollout_buffer
    buffer.skill_advantages[buffer.assigned] = np.nan


def poison_skill_log_probs(model: HMASD) -> None:
    buffer = model.rollout_buffer
    buffer.skill_log_probs[buffer.assigned] = np.nan


def poison_successors(model: HMASD) -> None:
    model.rollout_buffer.observations["state"][-1] = np.nan  # what follows the last step; nobody else learns from it


def poison_gradient(network: str) -> Callable[[HMASD], None]:
    def poison(model: HMASD) -> None:
        parameter = next(iter(getattr(model.policy, network).parameters()))
        parameter.register_hook(lambda gradient: gradient * th.inf)

    return poison


POISONS = {
    "advantages": ("actor", poison_advantages),
    "log-probabilities": ("actor", poison_actor_log_probs),
    "returns": ("critic", poison_returns),
    "high-level advantages": ("coordinator", poison_skill_advantages),
    "high-level log-probabilities": ("coordinator", poison_skill_log_probs),
    "inputs of the discriminators": ("discriminators", poison_successors),
    **{f"gradient of the {network}": (network, poison_gradient(network)) for network in NETWORKS},
}


class PoisonUpdate:
    """Poisons one update, after the rollout has been evaluated."""

    def __init__(self, model: HMASD, poison: Callable[[HMASD], None], updates: tuple[int, ...]) -> None:
        self.original, self.count = model._update_networks, 0
        self.model, self.poison, self.updates = model, poison, updates

    def __call__(self) -> Any:
        self.count += 1
        if self.count in self.updates:
            self.poison(self.model)
        return self.original()


@pytest.mark.parametrize("name", POISONS)
def test_losses_and_gradients_name_their_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    network, poison = POISONS[name]
    model = make_model(batch_size=ROLLOUT)  # whole batches, so that the first step is the poisoned one
    model.discriminator_batch_size = ROLLOUT
    before: list[th.Tensor] = []

    def remembering(model: HMASD) -> None:
        before.append(model.policy.flat(network).vector.detach().clone())
        poison(model)

    monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, remembering, (2,)))
    message = rf"Update 2, timestep 96: The {network}'s loss is .* gradient norm .*Parameters were left unchanged. Lower the"
    with pytest.raises(NonFiniteError, match=message):
        model.learn(10 * ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT))
    assert th.equal(model.policy.flat(network).vector, before[0])
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() == folder.path_for(48)
    model.save(tmp_path / "still_good")
    assert HMASD.load(tmp_path / "still_good").policy_version == 2  # as networks before the poisoned one have learnt


def test_ruined_statistics_are_not_saved(tmp_path: Path) -> None:
    model = make_model()
    model.policy.low_value_norm.mean_sum.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"low_value_norm.mean_sum.*not saved"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ going back


def rollback_model(env: DummyVecEnv, **kwargs: Any) -> HMASD:
    return HMASD("MlpPolicy", env, **{**FAST, "on_nan": "rollback", "learning_rate": 1e-3, **kwargs})


@pytest.mark.parametrize("kind", [PoisonedResumable, PoisonedTeam])
@pytest.mark.parametrize("name", ["advantages", "gradient of the critic", "observation"])
def test_training_goes_back_and_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, kind: type
) -> None:
    env = poisoned(kind, at=30 if name == "observation" else -1)
    model = rollback_model(env)
    if name == "advantages":
        monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, poison_advantages, (3,)))
    elif name == "gradient of the critic":
        handles: list[Any] = []

        def once(model: HMASD) -> None:
            parameter = next(iter(model.policy.critic.parameters()))
            handles.append(parameter.register_hook(lambda gradient: handles[0].remove() or gradient * th.nan))

        monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, once, (3,)))
    draws: dict[int, list[float]] = {}

    class Draws(BaseCallback):
        def _on_rollout_start(self) -> None:
            state = th.get_rng_state()
            draws.setdefault(model.num_timesteps, []).append(float(th.rand(1)))
            th.set_rng_state(state)

        def _on_step(self) -> bool:
            return True

    model.learn(6 * ROLLOUT, callback=[TrainingCheckpoint(tmp_path, ROLLOUT), Draws()])
    assert model.num_timesteps == 6 * ROLLOUT
    assert model.policy_version == 6
    assert (model._n_rollbacks, model._learning_rate_scale) == (1, 0.5)
    assert list(draws) == [ROLLOUT * number for number in range(6)]
    first, second = draws[2 * ROLLOUT]
    assert first != second
    for network in ("coordinator", "actor", "critic"):
        assert model.policy.flat(network).optimizer.param_groups[0]["lr"] == 5e-4
    (message,) = [record.message for record in caplog.records if "goes back" in record.message]
    assert "to 96 environment steps" in message
    assert "checkpoint_000000000096.zip" in message
    assert "rollback 1 of 3" in message
    said = any("begins" in r.message or "new episodes in all environments" in r.message for r in caplog.records)
    assert said == (kind is PoisonedTeam)  # which cannot give its state


@pytest.mark.parametrize("limit", [1, 2])
def test_going_back_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    model = rollback_model(poisoned(), max_rollbacks=limit)
    monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, poison_returns, tuple(range(2, 99))))
    with pytest.raises(NonFiniteError, match=rf"The critic's loss is inf.*Training had gone back {limit} times before"):
        model.learn(10 * ROLLOUT, callback=TrainingCheckpoint(tmp_path, ROLLOUT))
    assert model._n_rollbacks == limit
    model = rollback_model(poisoned(at=20, times=99), max_rollbacks=limit)
    env = model.env.envs[2].unwrapped if hasattr(model.env, "envs") else None

    class Again(BaseCallback):
        def _on_rollout_start(self) -> None:
            env.steps = 8

        def _on_step(self) -> bool:
            return True

    with pytest.raises(InvalidTransitionError, match=rf"Environment 2 returned NaN.*gone back {limit} times before"):
        model.learn(10 * ROLLOUT, callback=[TrainingCheckpoint(tmp_path / "other", ROLLOUT), Again()])


def test_going_back_needs_somewhere_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rollback_model(poisoned())
    with pytest.raises(ValueError, match=r"on_nan='rollback' needs checkpoints.*TrainingCheckpoint"):
        model.learn(ROLLOUT)
    assert model.num_timesteps == 0
    monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, poison_returns, (1,)))

    class Lose(BaseCallback):
        def _on_step(self) -> bool:
            for path in tmp_path.iterdir():
                path.unlink()
            return True

    with pytest.raises(NonFiniteError, match="There is no good checkpoint to go back to"):
        model.learn(ROLLOUT, callback=[TrainingCheckpoint(tmp_path, ROLLOUT), Lose()])


def test_schedules_go_on_to_the_end_of_this_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint was written by a training that was shorter."""
    model = rollback_model(poisoned(), ent_coef=lambda progress: 0.01 * progress)
    checkpoint = TrainingCheckpoint(tmp_path, ROLLOUT)
    model.learn(2 * ROLLOUT, callback=checkpoint)
    monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, poison_returns, (1,)))
    model.learn(2 * ROLLOUT, callback=checkpoint, reset_num_timesteps=False)
    assert model._n_rollbacks == 1
    assert model._total_timesteps == 4 * ROLLOUT
    assert model._current_progress_remaining == 0.0


def test_a_run_that_went_back_is_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(first: int, folder: Path) -> HMASD:
        model = rollback_model(poisoned(PoisonedResumable))
        monkeypatch.setattr(model, "_update_networks", PoisonUpdate(model, poison_returns, (2,)))
        model.learn(first * ROLLOUT, callback=TrainingCheckpoint(folder, ROLLOUT), schedule_timesteps=6 * ROLLOUT)
        return model

    whole = run(6, tmp_path / "whole")
    run(4, tmp_path / "halves").save(tmp_path / "half")
    second = HMASD.load(tmp_path / "half", env=poisoned(PoisonedResumable))
    assert (second._n_rollbacks, second._learning_rate_scale) == (1, 0.5)
    second.learn(2 * ROLLOUT, callback=TrainingCheckpoint(tmp_path / "halves", ROLLOUT), reset_num_timesteps=False)
    assert digest(second) == digest(whole)
    assert second._learning_rate_scale == 0.5
