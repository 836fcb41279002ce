"""RL Zoo's programs beside training, on HMASD: playing, videos, plots, searching for hyperparameters."""

from __future__ import annotations

import pickle
import sys
from importlib import util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from zoo_runs import SMALL, newest, train, zoo

from hmasd_sb3 import HMASD
from hmasd_sb3.policies.flat import NonFiniteError

pytest.importorskip("rl_zoo3")
optuna = pytest.importorskip("optuna")

EVALUATED = ["--eval-freq", "96", "--eval-episodes", "2"]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "small.yml").write_text(SMALL)
    return tmp_path


def play(program: str, *arguments: Any) -> int:
    return zoo(program, "--env", "AliceAndBob-v0", "-f", "logs", *arguments)


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@needs("requests")
class TestEnjoy:
    def test_every_saved_model(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert train("--save-freq", "96", *EVALUATED) == 0
        experiment = newest(in_tmp / "logs")
        for arguments, name in (
            ([], "AliceAndBob-v0.zip"),
            (["--load-best"], "best_model.zip"),
            (["--load-last-checkpoint"], "rl_model_192_steps.zip"),
            (["--load-checkpoint", "96"], "rl_model_96_steps.zip"),
        ):
            capsys.readouterr()
            assert play("enjoy", "--no-render", "-n", "210", *arguments) == 0
            out = capsys.readouterr().out
            assert f"Loading {Path('logs/hmasd') / experiment.name / name}" in out
            assert "Mean episode length" in out  # of episodes in the game that it was trained in
        assert play("enjoy", "--no-render", "--load-checkpoint", "97") == 2
        assert "No model found for hmasd" in capsys.readouterr().err

    def test_the_folder_that_train_writes_to_is_the_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert zoo("enjoy", "--env", "AliceAndBob-v0", "--no-render") == 2
        assert "The logs/hmasd folder was not found" in capsys.readouterr().err
        assert train("-n", "48") == 0
        assert zoo("enjoy", "--env", "AliceAndBob-v0", "--no-render", "-n", "3") == 0

    def test_skills_last_over_steps_and_begin_with_episodes(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert train() == 0
        before, starts = [], []
        predict = HMASD.predict

        def watched(
            self: HMASD, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> Any:
            before.append(state)
            starts.append(np.asarray(episode_start).copy())
            return predict(self, observation, state, episode_start, deterministic)

        monkeypatch.setattr(HMASD, "predict", watched)
        assert play("enjoy", "--no-render", "-n", "102", "--env-kwargs", "size:5", "max_steps:50") == 0
        assert before[0] is None
        assert all(state is not None for state in before[1:])
        assert [step for step, start in enumerate(starts) if start.all()] == [0, 50, 100]

    def test_several_environments_with_normalisation(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "small.yml").write_text(SMALL + "  normalize: true\n")
        assert train(*EVALUATED) == 0
        assert (newest(in_tmp / "logs") / "AliceAndBob-v0/vecnormalize.pkl").is_file()
        assert play("enjoy", "--no-render", "-n", "20", "--n-envs", "2") == 0
        assert "Loading running average" in capsys.readouterr().out

    @needs("pygame")
    def test_a_window(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        shown: list[Any] = []
        draw = gym.wrappers.HumanRendering._render_frame

        def counted(self: Any) -> None:
            shown.append(1)
            draw(self)

        monkeypatch.setattr(gym.wrappers.HumanRendering, "_render_frame", counted)
        assert train("-n", "48") == 0
        with pytest.warns(UserWarning, match="doesn't natively support"):
            assert play("enjoy", "-n", "3") == 0
        assert shown


@needs("moviepy")
def test_record_video(in_tmp: Path) -> None:
    assert train() == 0
    assert play("record-video", "-n", "12", "-o", "videos", "--deterministic") == 0
    (video,) = (in_tmp / "videos").glob("*.mp4")
    from moviepy import VideoFileClip

    with VideoFileClip(str(video)) as clip:
        frames = list(clip.iter_frames())
    assert len(frames) == 13
    assert frames[0].ndim == 3
    assert any(not np.array_equal(frames[0], frame) for frame in frames[1:])  # somebody moves


@needs("moviepy", "requests")
def test_a_game_of_ones_own(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--gym-packages` imports what registers it, in the program for videos too, which has no such option in RL Zoo."""
    (in_tmp / "own_games.py").write_text(
        "import gymnasium as gym\n"
        "from hmasd_sb3.envs import alice_and_bob_team_env\n"
        "gym.register('OwnGame-v0', entry_point=lambda **kwargs: alice_and_bob_team_env(size=5, **kwargs))\n"
    )
    monkeypatch.syspath_prepend(str(in_tmp))
    own = ["--env", "OwnGame-v0", "--gym-packages", "own_games"]
    small = ["-params", "n_envs:2", "n_steps:10", "n_epochs:1", "skill_n_epochs:1"]
    try:
        for program, arguments in (
            ("train", ["-n", "20", "--eval-freq", "-1", *small]),
            ("enjoy", ["-n", "5", "--no-render"]),
            ("record-video", ["-n", "5", "-o", "videos"]),
        ):
            gym.registry.pop("OwnGame-v0", None)
            sys.modules.pop("own_games", None)
            assert zoo(program, *own, *arguments) == 0
        assert list((in_tmp / "videos").glob("*.mp4"))
    finally:
        gym.registry.pop("OwnGame-v0", None)


@needs("seaborn", "pandas", "matplotlib")
class TestPlots:
    def test_figures_are_written(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for seed in ("1", "2"):
            assert train("-n", "960", *EVALUATED, "--seed", seed) == 0
        of_all = ["-e", "AliceAndBob-v0", "-f", "logs", "--save-figures", "figures"]
        assert zoo("plot-train", "-a", "hmasd", *of_all, "-w", "2") == 0
        assert zoo("all-plots", "-a", "hmasd", *of_all, "--no-million", "-o", "results") == 0
        assert "AliceAndBob-v0" in capsys.readouterr().out
        with (in_tmp / "results.pkl").open("rb") as file:
            assert len(pickle.load(file)["AliceAndBob-v0"]["HMASD-logs"]["timesteps"]) == 10
        assert zoo("plot_from_file", "-i", "results.pkl", "--no-million", "--save-figures", "figures") == 0
        names = {path.name for path in (in_tmp / "figures").iterdir()}
        assert {"Training-Episodic-Reward.png", "Results-AliceAndBob-v0.png", "Sensitivity-plot.png"} <= names

    @pytest.mark.parametrize("saved", [["--save-figures", "figures"], []])
    def test_no_empty_picture(self, saved: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert train() == 0
        capsys.readouterr()
        assert zoo("plot-train", "-a", "hmasd", "-e", "AliceAndBob-v0", "-f", "logs", *saved) == 2
        assert "no run found has as many episodes as the rolling window (-w N, 100" in capsys.readouterr().err
        assert not list(Path().glob("figures/*"))

    def test_what_cannot_be_plotted(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert train(*EVALUATED) == 0
        assert zoo("all-plots", "-a", "hmasd", "-e", "AliceAndBob-v0", "-f", "logs", "-o", "results", "--no-display") == 0
        assert zoo("plot-from-file", "-i", "results") == 2
        assert "at least two runs" in capsys.readouterr().err
        assert zoo("plot-from-file", "-i", "results", "--save-figures") == 2
        assert "--save-figures needs the name of a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("meeting:parallel_env", "Error: meeting:parallel_env not found in gym registry. A game of your own needs an id and "),
        (
            "AliceAndBo-v0",
            "Error: AliceAndBo-v0 not found in gym registry, you maybe meant AliceAndBob-v0. A game of your own ",
        ),
    ],
)
def test_a_game_without_an_id_is_pointed_somewhere(env: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo("train", "--env", env) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert "docs/zoo.md; hmasd train --env package.module:function needs none.\n" in err


@needs("pandas")
class TestOptimize:
    SEARCH = ("-optimize", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots", "--n-startup-trials", "1")
    KEPT = ("--study-name", "study", "--storage", "study.log")

    @pytest.fixture(autouse=True)
    def small_space(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A few arguments only, so that trials take no longer than other small experiments."""
        from hmasd_sb3.tuning import space

        wanted = ["n_agent_skills", "learning_rate", "gamma", "ent_coef"]
        small = space.SearchSpace(only=wanted)
        monkeypatch.setattr(space, "sample_hmasd", lambda trial, n_actions, n_envs, _: small.sample(trial, n_envs))

    def study(self) -> Any:
        backend = optuna.storages.journal.JournalFileBackend("study.log")
        return optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend))

    def test_eight_trials_and_training_with_one_of_them(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert train(*self.SEARCH, *self.KEPT, "--n-trials", "8", "-n", "96") == 0
        study = self.study()
        states = [trial.state.name for trial in study.trials]
        assert len(states) == 8
        assert set(states) <= {"COMPLETE", "PRUNED"}
        assert "COMPLETE" in states
        assert list((in_tmp / "logs/hmasd").glob("report_AliceAndBob-v0_8-trials*.csv"))
        for number in (0, 5):  # a number that counts as False is a number all the same
            assert train(*self.KEPT, "--trial-id", number, "-n", "48") == 0
            model = HMASD.load(newest(in_tmp / "logs") / "AliceAndBob-v0.zip")
            params = study.trials[number].params
            assert model.n_agent_skills == params["n_agent_skills"]
            assert model.gamma == pytest.approx(1 - params["one_minus_gamma"])
            assert model.skill_interval == 5  # of the file
        capsys.readouterr()
        assert train(*self.KEPT, "--trial-id", "99") == 2
        assert "has no such trial" in capsys.readouterr().err
        assert train("--study-name", "other", "--storage", "study.log", "--trial-id", "0") == 2
        assert "no such study" in capsys.readouterr().err

    def test_two_at_a_time(self, in_tmp: Path) -> None:
        assert train(*self.SEARCH, *self.KEPT, "--n-trials", "4", "--n-jobs", "2", "-n", "96", "--pruner", "none") == 0
        assert [trial.state.name for trial in self.study().trials] == ["COMPLETE"] * 4

    @pytest.mark.parametrize(
        "error", [ValueError("a bug"), AssertionError("a bug"), NonFiniteError("loss of the critic is NaN"), RuntimeError("x")]
    )
    def test_a_trial_that_an_error_ended_has_failed(
        self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        learn, calls = HMASD.learn, []

        def broken(self: HMASD, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise error
            return learn(self, *args, **kwargs)

        monkeypatch.setattr(HMASD, "learn", broken)
        assert train(*self.SEARCH, *self.KEPT, "--n-trials", "2", "-n", "48") == 0
        first, second = self.study().trials
        assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
        assert first.user_attrs["error"] == f"{type(error).__name__}: {error}"
        assert "error" not in second.user_attrs

    def test_a_refused_constructor_argument_is_a_failure_too(
        self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from hmasd_sb3.tuning import space

        monkeypatch.setattr(space, "sample_hmasd", lambda *_: {"batch_size": 7})
        assert train(*self.SEARCH, *self.KEPT, "--n-trials", "2", "-n", "48") == 1
        assert [trial.state.name for trial in self.study().trials] == ["FAIL", "FAIL"]
        assert "No trial came to an end. The first of 2 failures: trial 0: ValueError: batch_size=7" in capsys.readouterr().err

    def test_pruned_trials_stay_pruned(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda self, study, trial: trial.number == 1)
        assert train(*self.SEARCH, *self.KEPT, "--n-trials", "2", "-n", "96") == 0
        first, second = self.study().trials
        assert (first.state.name, second.state.name) == ("COMPLETE", "PRUNED")
        assert "error" not in second.user_attrs

    def test_schedules_of_the_space_reach_the_constructor(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from hmasd_sb3.tuning import space

        monkeypatch.setattr(space, "sample_hmasd", lambda *_: {"skill_ent_coef": "lin_0.1_0.02"})
        assert train(*self.SEARCH, *self.KEPT, "--n-trials", "1", "-n", "48") == 0
        assert self.study().trials[0].state.name == "COMPLETE"


class TestMissingPackages:
    @pytest.mark.parametrize(
        ("package", "arguments"),
        [
            ("rl_zoo3", ["train", "--env", "AliceAndBob-v0"]),
            ("pandas", ["train", "--env", "AliceAndBob-v0", "-optimize"]),
            ("seaborn", ["plot-train", "-a", "hmasd", "-e", "AliceAndBob-v0", "-f", "logs"]),
            ("moviepy", ["record-video", "--env", "AliceAndBob-v0"]),
            ("tensorboard", ["train", "--env", "AliceAndBob-v0", "-tb", "logs"]),
            ("requests", ["enjoy", "--env", "AliceAndBob-v0"]),
        ],
    )
    def test_named_with_the_command_that_installs_them(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, arguments: list[str]
    ) -> None:
        for module in list(sys.modules):  # imported by other tests, perhaps
            if module.startswith(f"{package}.") or module in ("rl_zoo3.enjoy", "rl_zoo3.load_from_hub"):
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
        assert zoo(*arguments) == 2
        err = capsys.readouterr().err
        assert f'needs the package "{package}", which is not installed: pip install "hmasd-sb3[zoo]"' in err
        assert err.count("\n") == 1
