"""The search space: every sample is valid, and what a trial chose can be read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from teams import random_team_vec_env

from hmasd_sb3 import HMASD, paper_settings
from hmasd_sb3.running.hyperparameters import NAMES, default_of
from hmasd_sb3.tuning.ranges import Choices, Floats, Integers
from hmasd_sb3.tuning.space import BATCHES, PPO, SKILLS, SearchSpace, convert_hmasd, sample_hmasd
from hmasd_sb3.validation import check_batch_size, check_hyperparameters

DEFAULTS = {name: default_of(name) for name in (*NAMES, "seed", "tensorboard_log")}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def trials(n: int, seed: int = 0) -> Iterator[optuna.Trial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(n):
        yield study.ask()


@pytest.mark.parametrize("n_envs", [1, 3, 7, 32])
def test_every_sample_is_valid_and_can_be_read_back(n_envs: int) -> None:
    for trial in trials(150, seed=n_envs):
        arguments = sample_hmasd(trial, 4, n_envs, {})
        check_hyperparameters({**DEFAULTS, **arguments})
        check_batch_size(arguments["batch_size"], arguments["n_steps"], n_envs)
        assert arguments["sequence_length"] <= arguments["n_steps"]
        assert convert_hmasd(trial.params) == arguments
        # As a storage gives it back.
        assert convert_hmasd(json.loads(json.dumps(trial.params))) == json.loads(json.dumps(arguments)) == arguments


def test_samples_make_a_model() -> None:
    for trial in trials(6):
        arguments = sample_hmasd(trial, 4, 4, {})
        model = HMASD("MlpPolicy", random_team_vec_env(4), device="cpu", policy_kwargs={"hidden_size": 8}, **arguments)
        assert model.n_agent_skills == arguments["n_agent_skills"]


def test_what_the_task_asks_for_is_searched() -> None:
    searched = SearchSpace().ranges
    assert {"skill_interval", "n_team_skills", "n_agent_skills"} <= searched.keys()
    assert {"team_reward_coef", "team_diversity_coef", "agent_diversity_coef", "ent_coef", "skill_ent_coef"} <= searched.keys()
    assert {"n_steps", "batch_size", "n_epochs", "learning_rate", "gamma", "gae_lambda", "clip_range"} <= searched.keys()
    assert searched.keys() == SKILLS.keys() | BATCHES.keys() | PPO.keys()
    seen: dict[str, set[Any]] = {name: set() for name in searched}
    for trial in trials(80):
        arguments = sample_hmasd(trial, 4, 32, {})
        for name in searched:
            seen[name].add(arguments.get(name, "default"))
    assert all(len(values) > 1 for values in seen.values()), seen


def test_defaults_and_the_papers_settings_lie_inside() -> None:
    space = SearchSpace()
    found = space.convert(space.params_of({}, 32))
    assert found["batch_size"] == 800
    assert {name: value for name, value in found.items() if name != "batch_size" and value != default_of(name)} == {}
    scheduled = {name for name in space.ranges if callable(default_of(name))}
    assert scheduled == {"learning_rate", "discriminator_learning_rate", "ent_coef", "skill_ent_coef"}
    assert space.ranges.keys() - found.keys() == scheduled
    for task in ("alice_and_bob", "3m", "2s_vs_1sc", "2m_vs_1z", "cramped_room", "coordination_ring"):
        paper = paper_settings(task)
        found = space.convert(space.params_of(paper, 32))
        assert found.keys() == space.ranges.keys()
        assert {name: value for name, value in found.items() if paper[name] != value} == {}
        study = optuna.create_study()
        study.enqueue_trial(space.params_of(paper, 32))
        assert space.sample(study.ask(), 32) == found


def test_a_schedule_that_is_the_default_is_known_as_such() -> None:
    default = default_of("learning_rate")
    same = type(default)(default.start, default.end, default.end_fraction)
    assert SearchSpace().params_of({"learning_rate": same}, 32)["learning_rate_schedule"] == "default"
    for other in (type(default)(default.start, 0.0, 1.0), "lin_0.001"):
        with pytest.raises(ValueError, match="lies outside"):
            SearchSpace().params_of({"learning_rate": other}, 32)


def test_what_lies_outside_is_said() -> None:
    for arguments, message in (
        ({"skill_interval": 3}, "skill_interval=3 is none of 5 to 100"),
        ({"n_steps": 110}, "n_steps=110 is none of 40 to 300 in steps of 20"),
        ({"clip_range": 0.25}, "clip_range=0.25 is none of"),
        ({"learning_rate": 1.0}, "learning_rate=1.0 lies outside of 5e-05 to 0.003"),
        ({"batch_size": 32}, "n_minibatches=100 is none of"),
        ({"ent_coef": lambda _: 0.1}, "lies outside"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchSpace().params_of(arguments, 32)


def test_spaces_are_narrowed_widened_and_fixed() -> None:
    space = SearchSpace(
        fixed={"skill_interval": 20, "n_steps": 7},
        without=["gamma"],
        only=["skills", "gamma", "batch_size", "sequence_length", "vf_coef"],
        ranges={"n_team_skills": Integers(2, 2), "vf_coef": Floats(0.5, 2.0)},
    )
    assert set(space.ranges) == (SKILLS.keys() - {"skill_interval"}) | {"batch_size", "sequence_length", "vf_coef"}
    for trial in trials(20):
        arguments = space.sample(trial, 3)
        assert space.convert(trial.params) == arguments
        assert (arguments["skill_interval"], arguments["n_steps"], arguments["n_team_skills"]) == (20, 7, 2)
        assert "gamma" not in arguments
        assert 0.5 <= arguments["vf_coef"] <= 2.0
        assert 21 % arguments["batch_size"] == 0
        assert arguments["sequence_length"] <= 7
    assert json.loads(json.dumps(space.describe())) == space.describe()
    assert space.describe() != SearchSpace().describe()


def test_fixed_sizes_of_minibatches() -> None:
    with pytest.raises(ValueError, match="batch_size=64 is fixed and would not divide every rollout"):
        SearchSpace(fixed={"batch_size": 64})
    space = SearchSpace(fixed={"batch_size": 64, "n_steps": 16})
    assert space.sample(next(trials(1)), 4)["batch_size"] == 64
    with pytest.raises(ValueError, match="batch_size=64 does not divide the rollout"):
        space.sample(next(trials(1)), 5)


def test_mistakes_are_named_at_once() -> None:
    for kwargs, message in (
        ({"fixed": {"skill_intervall": 5}}, "no argument 'skill_intervall'.*Did you mean 'skill_interval'"),
        ({"fixed": {"gamma": 2.0}}, "gamma must be a number in"),
        ({"without": ["gama"]}, "Did you mean 'gamma'"),
        ({"only": ["skill"]}, "Did you mean 'skills'"),
        ({"ranges": {"gamma": Floats(0.5, 1.5)}}, "The range .* of gamma: gamma must be a number in"),
        ({"ranges": {"n_steps": Floats(10, 20)}}, "n_steps is a whole number: use Integers"),
        ({"ranges": {"batch_size": Integers(1, 4)}}, "Choices of minibatches"),
        ({"ranges": {"n_epochs": Choices([1, "many"])}}, "of n_epochs: n_epochs must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchSpace(**kwargs)  # type: ignore[arg-type]
    for make in (
        lambda: Floats(2, 1),
        lambda: Floats(float("nan"), 1),
        lambda: Floats(0, 1, log=True),
        lambda: Floats(0.5, 1, log=True, complement=True),
        lambda: Integers(1, 10, step=2),
        lambda: Integers(1, 9, step=2, log=True),
        lambda: Choices([]),
        lambda: Choices([np.zeros(1)]),  # type: ignore[list-item]
    ):
        with pytest.raises(ValueError):
            make()


def test_variations_stay_inside_and_are_others() -> None:
    space, generator = SearchSpace(), np.random.default_rng(0)
    params = space.params_of({"learning_rate": 3e-3, "gamma": 0.998}, 32)
    for number in range(300):
        (name,) = generator.choice(sorted(space.ranges), 1)
        before, params = params, space.vary(params, [name], generator)
        # A trial that is given its values raises for one outside.
        arguments = space.sample(optuna.trial.FixedTrial(params), 32)  # type: ignore[arg-type]
        changed = {key for key in before.keys() | params.keys() if before.get(key, "no") != params.get(key, "no")}
        stays = isinstance(space.ranges[name], Floats) and params.get(name) in (before.get(name), 3e-3, 5e-5)
        assert changed or stays or f"one_minus_{name}" in params, (number, name)
        assert all(name in key or (name, key) == ("batch_size", "n_minibatches") for key in changed)
        assert arguments["n_steps"] * 32 % arguments["batch_size"] == 0
        # Nothing is left of a constant that has become the schedule.
        assert ("learning_rate" in params) == (params["learning_rate_schedule"] == "constant")


@pytest.mark.parametrize("log", [False, True])
def test_steps_are_a_fifth_of_the_range(log: bool) -> None:
    generator = np.random.default_rng(0)
    floats, integers = Floats(1.0, 100.0, log=log), Integers(1, 100, log=log)
    middle = 10.0 if log else 50.5
    scale = np.log if log else np.asarray
    width = scale(100.0) - scale(1.0)
    for kind, value in ((floats, middle), (integers, int(middle))):
        taken = np.array([kind.step_from({"x": value}, "x", generator)["x"] for _ in range(4000)], dtype=float)
        assert np.mean(scale(taken)) == pytest.approx(scale(float(value)), abs=0.02 * width)
        assert np.std(scale(taken)) == pytest.approx(0.2 * width, rel=0.06)
        assert taken.min() >= 1.0
        assert taken.max() <= 100.0
    assert value not in taken


def test_steps_between_few_values() -> None:
    generator = np.random.default_rng(0)
    values = [Choices([1, 2, 4]).step_from({"x": 2}, "x", generator)["x"] for _ in range(60)]
    assert set(values) == {1, 4}
    assert Choices([7]).step_from({"x": 7}, "x", generator) == {"x": 7}
    assert Integers(3, 3).step_from({"x": 3}, "x", generator) == {"x": 3}
    assert {Integers(2, 6, step=2).step_from({"x": 2}, "x", generator)["x"] for _ in range(60)} <= {4, 6}
    kind = Floats(0.1, 0.2, or_default=True)
    assert kind.step_from({"x_schedule": "default"}, "x", generator).keys() == {"x_schedule", "x"}
    kinds = [kind.step_from({"x_schedule": "constant", "x": 0.15}, "x", generator)["x_schedule"] for _ in range(400)]
    assert 60 < kinds.count("default") < 140
    assert Floats(0.5, 0.5).step_from({"x": 0.5}, "x", generator) == {"x": 0.5}
