"""Model files whose tensors and states are none of such a model: types, shapes and names are checked before use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hostile import (
    parts_of,
    tree,
    with_tree,
    write,
)
from stable_baselines3.common.callbacks import BaseCallback
from teams import make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.saving import ModelFileError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model()
    model.learn(96)
    path = tmp_path_factory.mktemp("good") / "good.zip"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def good_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "policy.zip"
    make_model().policy.save(path)
    return path


# ------------------------------------------------------------------ tensors


def test_optimizers_by_other_names_reach_nothing(tmp_path: Path, good: Path) -> None:
    optimizers = tree(parts_of(good), "optimizers.pth")
    weights = tree(parts_of(good), "policy.pth")
    for name in ("discriminator_noise", "policy.actor", "policy", "env", "__class__", 3):
        path = with_tree(tmp_path / "evil.zip", good, "optimizers.pth", {**optimizers, name: weights})
        with pytest.raises(ModelFileError, match="does not hold the weights and optimizers"):
            HMASD.load(path, device="cpu")
        with pytest.raises(ModelFileError, match="does not hold the weights and optimizers"):
            make_model().set_parameters(path, exact_match=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["param_groups"][0].update(lr="x"),
        lambda state: state["param_groups"][0].update(betas=(0.9,)),
        lambda state: state["param_groups"][0].update(foreach=[1]),
        lambda state: state["param_groups"][0].update(params=[1]),
        lambda state: state["param_groups"].append({}),
        lambda state: state["state"][0].update(exp_avg=th.zeros(3)),
        lambda state: state["state"].update({7: {}}),
        lambda state: state.update(more=1),
        lambda state: state.clear(),
    ],
)
def test_states_of_other_optimizers(tmp_path: Path, good: Path, change: Callable[[Any], Any]) -> None:
    optimizers = tree(parts_of(good), "optimizers.pth")
    change(optimizers["policy.actor_optimizer"])
    path = with_tree(tmp_path / "evil.zip", good, "optimizers.pth", optimizers)
    with pytest.raises(ModelFileError, match=r"does not fit the model \(.*policy.actor_optimizer"):
        HMASD.load(path, device="cpu")
    model = make_model()
    before = parameters_of(model)
    with pytest.raises(ModelFileError, match="other networks than this model's"):
        model.set_parameters(path)
    assert same(parameters_of(model), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.clear(),
        lambda weights: weights.update(more=th.zeros(3)),
        lambda weights: weights.update({next(iter(weights)): th.zeros(3)}),
        lambda weights: weights.update({next(iter(weights)): "x"}),
    ],
)
def test_other_weights(tmp_path: Path, good: Path, change: Callable[[Any], Any]) -> None:
    weights = tree(parts_of(good), "policy.pth")
    change(weights)
    path = with_tree(tmp_path / "evil.zip", good, "policy.pth", weights)
    with pytest.raises(ModelFileError, match="does not fit the model"):
        HMASD.load(path, device="cpu")


def put(*place: Any) -> Callable[[Any], None]:
    """A change that puts the last argument where the others lead to."""
    *way, last, value = place

    def change(state: Any) -> None:
        for step in way:
            state = state[step]
        state[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("counters", "num_timesteps", "x"),
        put("counters", "_n_iterations", None),
        put("counters", "num_timesteps", 1.5),
        put("counters", "num_timesteps", -48),
        put("counters", "_n_rollbacks", float("nan")),
        put("counters", "_learning_rate_scale", float("inf")),
        put("policy_version", 2.5),
        put("seconds", float("inf")),
        put("counters", "_learning_rate_scale", True),
        put("counters", {}),
        put("policy_version", "x"),
        put("run", 3),
        put("minibatch_generator", {}),
        put("minibatch_generator", "bit_generator", "MT19937"),
        put("skill_state", (1, 2, 3, 4)),
        put("skill_state", [1]),
        put("critic_hidden", th.zeros(9, 9)),
        put("critic_hidden", [0.0]),
        put("schedules", "discriminator_noise", {"level": "x"}),
        put("schedules", "discriminator_noise", {}),
        put("ep_info_buffer", [{"l": 1}]),
        put("ep_info_buffer", {}),
        put("ep_success_buffer", ["x"]),
        put("generators", {}),
        put("generators", "python", (3, (1, 2), None)),
        put("generators", "numpy", ("MT19937", 3, 3, 3, 3.0)),
        put("generators", "torch", th.zeros(3, dtype=th.uint8)),
        put("seconds", "x"),
        put("last_obs", {"obs": 3}),
        put("last_obs", []),
        put("last_episode_starts", None),
        put("env", [3]),
        put("env", {}),
        put("rollout", {}),
        put("callbacks", [{"class": 3}]),
        put("callbacks", {"__class__": "x"}),
        put("logger", {}),
        put("logger", "pending", {"rollout/x": 3}),
        lambda state: state.clear(),
        lambda state: state.pop("rollout"),
    ],
)
def test_training_states_that_are_none(tmp_path: Path, good: Path, change: Callable[[Any], Any]) -> None:
    state = tree(parts_of(good), "training.pth")
    change(state)
    path = with_tree(tmp_path / "evil.zip", good, "training.pth", state)
    with pytest.raises(ModelFileError, match=r"evil.zip cannot be loaded: what it holds does not fit the model"):
        HMASD.load(path, env=random_team_vec_env(), device="cpu")


class Remembering(BaseCallback):
    """Has attributes that a file might like to set."""

    secret = "mine"

    def _on_step(self) -> bool:
        return True


def test_callbacks_get_no_other_attributes(tmp_path: Path) -> None:
    model = make_model()
    model.learn(48, callback=Remembering())
    model.save(tmp_path / "good")
    state = tree(parts_of(tmp_path / "good.zip"), "training.pth")
    (one,) = state["callbacks"]
    one["state"]["known"].update({"secret": "theirs", "model": 3, "_on_step": 3})
    path = with_tree(tmp_path / "evil.zip", tmp_path / "good.zip", "training.pth", state)
    callback = Remembering()
    HMASD.load(path, env=random_team_vec_env()).learn(48, callback=callback, reset_num_timesteps=False)
    assert callback.secret == "mine"
    assert callable(callback._on_step)
    assert callback.n_calls == 24
    one["state"]["known"]["n_calls"] = "x"
    path = with_tree(tmp_path / "evil.zip", tmp_path / "good.zip", "training.pth", state)
    with pytest.raises(ValueError, match="the file gives Remembering a n_calls of 'x'"):
        HMASD.load(path, env=random_team_vec_env()).learn(48, callback=callback, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "x"},
        {"hidden_size": -3},
        {"more": 1},
        {"lr_schedule": 1},
        {"optimizer_class": {"$class": "subprocess:Popen"}},
        {"optimizer_class": {"$class": "torch.nn:Linear"}},
        {"coordinator_class": {"$class": "torch.nn:Linear"}},
        {"observation_space": 3},
        {"value_norm_beta": "x"},
        {"n_team_skills": 9},
    ],
)
def test_policies_made_with_anything_else(tmp_path: Path, good_policy: Path, changes: dict[str, Any]) -> None:
    parts = parts_of(good_policy)
    constructor = {**json.loads(parts["constructor.json"]), **changes}
    path = write(tmp_path / "evil.zip", {**parts, "constructor.json": json.dumps(constructor).encode()})
    with pytest.raises(ModelFileError, match=r"evil.zip cannot be loaded"):
        HMASDPolicy.load(path, "cpu")


def test_arrays_of_objects_are_no_arrays(tmp_path: Path, good: Path) -> None:
    state = tree(parts_of(good), "training.pth")
    raw = th.from_numpy(np.arange(16, dtype=np.uint8))
    for dtype in ("O", "O,O", "V8", "<U4", 3):
        state["last_episode_starts"] = {"$array": (dtype, (2,), raw)}
        with pytest.raises(ModelFileError, match=r"was refused|does not fit"):
            HMASD.load(with_tree(tmp_path / "evil.zip", good, "training.pth", state), device="cpu")
