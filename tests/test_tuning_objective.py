"""What a trial is worth, and that a fault never looks like a bad trial."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import optuna
import pytest
import torch as th
from cli_games import FaultyTeam
from teams import RandomTeam, parameters_of, same
from tuning import QUICK, quick_objective

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.environments import make_training_env
from hmasd_sb3.running.hyperparameters import default_of
from hmasd_sb3.tuning.objective import SETTINGS, Objective, TrialInterrupted, make_objective
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.training import Evaluation, Training


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(before)


def new_study(**kwargs: Any) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), **kwargs)


def scripted(objective: Objective, monkeypatch: pytest.MonkeyPatch, values: dict[int, list[float]]) -> None:
    """Let evaluations come out as wanted, by seed, without any training."""
    monkeypatch.setattr(Training, "train_until", lambda self, timesteps: None)
    monkeypatch.setattr(
        Training,
        "evaluate",
        lambda self, number: Evaluation([0.0], [values[self.config.seed][number]]),  # type: ignore[list-item]
    )
    monkeypatch.setattr(Evaluation, "measure", lambda self, metric: float(self.successes[0]))


class TestTraining:
    def test_it_is_the_standard_learn_whatever_happens_beside_it(self) -> None:
        """Two seeds in turn, with evaluations between, in the middle of rollouts: the same as each alone in one call."""
        trainings = []
        for seed in (3, 8):
            config = RunConfig(
                seed=seed, total_timesteps=240, n_envs=4, eval_episodes=3, hyperparameters=QUICK, env_kwargs={"size": 3}
            )
            trainings.append(Training(config, deterministic=False))
        for number, steps in enumerate((100, 168, 240)):
            for training in trainings:
                training.train_until(steps)
                assert training.model.num_timesteps == steps
                training.evaluate(number)
        for training in trainings:
            model = HMASD("MlpPolicy", make_training_env(training.config), seed=training.config.seed, **QUICK)
            model.learn(240)
            assert training.model.num_timesteps == model.num_timesteps
            training.train_until(241)  # the last rollout is complete at the last pause, its update is not made
            assert training.model.num_timesteps == 240
            assert same(parameters_of(training.model), parameters_of(model))
            training.close()

    @pytest.mark.parametrize("env", ["teams:RandomTeam", "AliceAndBob-v0"])  # luck of the game, and of the actions drawn
    def test_evaluations_are_the_same_ones_for_all_trials(self, env: str) -> None:
        game = {} if env == "teams:RandomTeam" else {"size": 3, "max_steps": 30}
        config = RunConfig(env, total_timesteps=96, n_envs=4, eval_episodes=9, hyperparameters=QUICK, env_kwargs=game)
        outcomes = []
        for _ in range(2):
            training = Training(config, deterministic=False)
            outcomes.append([training.evaluate(number) for number in (0, 1, 0)])
            training.close()
        assert outcomes[0] == outcomes[1]
        assert outcomes[0][0] == outcomes[0][2] != outcomes[0][1]
        assert len(outcomes[0][0].returns) == 9
        assert len(outcomes[0][0].successes) == (9 if game else 0)

    def test_statistics_of_normalisation_reach_the_evaluation(self) -> None:
        config = RunConfig(seed=1, total_timesteps=96, n_envs=4, eval_episodes=2, hyperparameters=QUICK, normalize=True)
        training = Training(config, deterministic=False)
        training.train_until(48)
        training.evaluate(0)
        statistics = [env.obs_rms["state"] for env in (training.env, training.eval_env)]  # type: ignore[attr-defined]
        assert np.array_equal(statistics[0].mean, statistics[1].mean)
        assert training.env.obs_rms["state"].count > 40  # type: ignore[attr-defined]
        training.close()


class TestValue:
    def test_success_where_every_episode_reports_it_else_return(self) -> None:
        assert Evaluation([1.0, 3.0], []).measure("auto") == 2.0
        assert Evaluation([1.0, 3.0], [True, False]).measure("auto") == 0.5
        assert Evaluation([1.0, 3.0], [True, False]).measure("return") == 2.0
        for metric in ("auto", "success"):
            with pytest.raises(ValueError, match="1 of 2 episodes reported 'is_success'"):
                Evaluation([1.0, 3.0], [True]).measure(metric)
        with pytest.raises(ValueError, match="0 of 2 episodes"):
            Evaluation([1.0, 3.0], []).measure("success")

    @pytest.mark.parametrize(("aggregate", "value"), [("mean", 3.0), ("min", 1.0), ("q25", 2.0)])
    def test_the_last_third_counts_and_seeds_are_put_together(
        self, aggregate: str, value: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        objective = quick_objective(seeds=(0, 1, 2), n_evaluations=4, aggregate=aggregate)
        scripted(objective, monkeypatch, {0: [9, 9, 0, 2], 1: [9, 9, 6, 4], 2: [0, 9, 4, 2]})
        study = new_study()
        study.optimize(objective, n_trials=1)
        trial = study.trials[0]
        assert trial.value == value
        # What is reported at a step is what the value would be had that been the budget.
        assert trial.intermediate_values[24] == {"mean": 6.0, "min": 0.0, "q25": 4.5}[aggregate]
        assert list(trial.intermediate_values) == [24, 48, 72, 96]
        assert trial.user_attrs["evaluations"]["by_seed"][1] == [9, 9, 6, 4]

    def test_a_trial_that_lags_behind_is_pruned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        objective = quick_objective(seeds=(0, 1), n_evaluations=3)
        study = new_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=33))
        for values in ([5.0, 5.0, 5.0], [0.0, 0.0, 9.0]):
            scripted(objective, monkeypatch, {0: values, 1: values})
            study.optimize(objective, n_trials=1)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
        assert study.trials[1].last_step == 64  # step 32 is within the warm-up
        assert study.trials[1].user_attrs["evaluations"]["by_seed"] == [[0.0, 0.0], [0.0, 0.0]]
        assert "error" not in study.trials[1].user_attrs

    def test_a_trial_that_is_at_its_end_is_not_pruned_any_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class PruneAll(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
                return True

        study = new_study(pruner=PruneAll())
        for n_evaluations in (1, 2):
            objective = quick_objective(n_evaluations=n_evaluations)
            scripted(objective, monkeypatch, {0: [1.0, 1.0]})
            study.optimize(objective, n_trials=1)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]

    def test_a_trial_brings_settings_beyond_the_space(self) -> None:
        objective = quick_objective()
        study = new_study()
        study.enqueue_trial({"team_diversity_coef": 0.5}, user_attrs={SETTINGS: {"huber_delta": 2.5}})
        study.optimize(objective, n_trials=1)
        chosen = study.trials[0].user_attrs["hyperparameters"]
        assert (chosen["team_diversity_coef"], chosen["huber_delta"], chosen["n_steps"]) == (0.5, 2.5, 12)
        assert study.trials[0].user_attrs["seconds"] > 0


class TestFaults:
    @pytest.mark.parametrize("fault", ["nan", "raise", "exit"])
    def test_a_crash_is_marked_failed_with_its_error(self, fault: str) -> None:
        study = new_study()
        make = partial(FaultyTeam, fault=fault, at=20)
        study.optimize(quick_objective(make), n_trials=2, catch=(Exception,))
        for trial in study.trials:
            assert trial.state.name == "FAIL"
            text = {"nan": "NaN or infinity", "raise": "the game broke", "exit": "SystemExit: 0"}[fault]
            assert text in trial.user_attrs["error"]
            assert "Traceback" in trial.user_attrs["traceback"]
            assert trial.user_attrs["hyperparameters"]["n_steps"] == 12
            assert trial.value is None

    @pytest.mark.parametrize("at", [0, 20])
    def test_what_a_trial_held_is_gone_when_the_next_begins(self, at: int) -> None:
        made: list[Any] = []

        def make() -> RandomTeam:
            made.append(weakref.ref(team := FaultyTeam(at=at)))
            return team

        def alive_at_start(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            alive.append(sum(reference() is not None for reference in made))

        alive: list[int] = []
        study = new_study()
        gc.disable()
        try:
            study.optimize(quick_objective(make), n_trials=1, catch=(Exception,), callbacks=[alive_at_start])
            if at:  # not before the next one, as the error is still being dealt with
                study.optimize(quick_objective("refuses"), n_trials=1, catch=(Exception,), callbacks=[alive_at_start])
        finally:
            gc.enable()
        assert alive[-1] == 0

    def test_nan_of_a_network_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def update(self: HMASD) -> None:
            raise NonFiniteError("actor: loss is nan")

        monkeypatch.setattr(HMASD, "sync_update", update)
        study = new_study()
        with pytest.raises(NonFiniteError):
            study.optimize(quick_objective(), n_trials=1)
        assert study.trials[0].state.name == "FAIL"
        assert study.trials[0].user_attrs["error"] == "NonFiniteError: actor: loss is nan"

    def test_a_value_that_is_none_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        objective = quick_objective()
        scripted(objective, monkeypatch, {0: [0.0, math.nan]})
        study = new_study()
        with pytest.raises(ValueError, match=r"The evaluations at step 96 gave \[nan\]"):
            study.optimize(objective, n_trials=1)
        assert study.trials[0].state.name == "FAIL"

    def test_values_that_do_not_fit_are_a_failure(self) -> None:
        study = new_study()
        study.enqueue_trial({}, user_attrs={SETTINGS: {"batch_size": 7}})
        with pytest.raises(ValueError, match="batch_size=7 does not divide"):
            study.optimize(quick_objective(), n_trials=1)
        assert study.trials[0].state.name == "FAIL"

    def test_a_stop_is_no_failure_of_the_trial(self) -> None:
        stop = StopRequest()
        stop.requested = True
        study = new_study()
        with pytest.raises(TrialInterrupted):
            study.optimize(quick_objective(stop=stop), n_trials=1)
        assert "error" not in study.trials[0].user_attrs

    def test_environments_are_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        closed: list[int] = []
        monkeypatch.setattr(RandomTeam, "close", lambda self: closed.append(1))
        study = new_study()
        study.optimize(quick_objective(RandomTeam, seeds=(0, 1)), n_trials=1)
        study.optimize(quick_objective(lambda: FaultyTeam(at=3)), n_trials=1, catch=(RuntimeError,))
        assert len(closed) == 2 * 8 + 8

    def test_threads_are_refused(self) -> None:
        """They would draw from one another's random generators."""
        study = new_study()
        study.optimize(quick_objective(), n_trials=3, n_jobs=2, catch=(RuntimeError,))
        states = sorted((trial.state.name, trial.user_attrs.get("error")) for trial in study.trials)
        assert {state for state, _ in states} == {"COMPLETE", "FAIL"}

    def test_the_wrong_direction_is_refused(self) -> None:
        with pytest.raises(ValueError, match="direction='maximize'"):
            optuna.create_study().optimize(quick_objective(), n_trials=1)

    def test_wrong_arguments(self) -> None:
        for kwargs, message in (
            ({"seeds": ()}, "seeds must be different numbers"),
            ({"seeds": (1, 1)}, "seeds must be different numbers"),
            ({"seeds": (-1,)}, "seeds: each must be a whole number of at least 0"),
            ({"aggregate": "median"}, "aggregate must be one of"),
            ({"metric": "wins"}, "metric must be one of"),
            ({"n_evaluations": 0}, "n_evaluations must be"),
            ({"n_evaluations": 50}, "leaves no step of 32 environments"),
            ({}, r"less than two rollouts, 32 environments x 300 steps \(n_steps is searched up to 300\)"),
            ({"space": SearchSpace(fixed={"n_steps": 20})}, "two rollouts, 32 environments x 20 steps, so"),
            (
                {"space": SearchSpace(without=["n_steps"])},
                f"two rollouts, 32 environments x {default_of('n_steps')} steps, so",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                make_objective("AliceAndBob-v0", 1000, **kwargs)  # type: ignore[arg-type]
        make_objective("AliceAndBob-v0", 1280, space=SearchSpace(fixed={"n_steps": 20}))


def test_the_global_generators_go_on_as_ever() -> None:
    """Nothing of a trial depends on what was drawn in this process before."""
    study = new_study()
    for seed in (1, 2):
        th.manual_seed(seed)
        np.random.seed(seed)
        study.enqueue_trial({"team_diversity_coef": 0.5, "one_minus_gamma": 0.01})
        study.optimize(quick_objective(RandomTeam, metric="return"), n_trials=1)
    assert study.trials[0].value == study.trials[1].value
