"""The demo from end to end, shrunken; and that it can be stopped at any moment without losing what was learned."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from PIL import Image

from hmasd_sb3 import HMASD, demo, make_team_vec_env
from hmasd_sb3.monitoring.evaluation import ReportingEvalCallback
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback

SMALL = ["--n-envs", "4", "--total-timesteps", "800", "--eval-freq", "400", "--eval-episodes", "4"]


class BlindGame(ParallelEnv):  # type: ignore[misc]
    """Reports no success, cannot draw itself, ends after three steps."""

    metadata = {"name": "blind_game_v0"}

    def __init__(self) -> None:
        self.possible_agents = ["a", "b"]
        self.agents: list[str] = []
        self.time = 0

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        self.agents = list(self.possible_agents)
        self.time = 0
        return self._all(np.zeros(2, np.float32)), self._all({})

    def step(self, actions: dict[str, int]) -> tuple[Any, Any, Any, Any, Any]:
        self.time += 1
        done = self.time == 3
        result = (self._all(np.zeros(2, np.float32)), self._all(1.0), self._all(done), self._all(False), self._all({}))
        if done:
            self.agents = []
        return result

    def _all(self, value: Any) -> dict[str, Any]:
        return dict.fromkeys(self.possible_agents, value)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs land in the working directory, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestCompleteRun:
    def test_leaves_what_it_promises(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert demo.main([*SMALL, "--seed", "3"]) == 0
        (folder,) = (in_tmp / "runs").iterdir()
        assert re.fullmatch(r"AliceAndBob-v0-seed3-\d{8}-\d{6}", folder.name)
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "model.zip",
            "summary.json",
            "evaluations.npz",
            "learning_curve.png",
            "episode.gif",
            "tensorboard",
        }
        assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
        with Image.open(folder / "episode.gif") as image:
            assert image.n_frames > 1

        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert (summary["env"], summary["seed"], summary["n_envs"]) == ("AliceAndBob-v0", 3, 4)
        assert summary["env_steps"] == 800
        assert 0.0 <= summary["success_rate"] <= 1.0
        assert summary["train_seconds"] > 0.0
        assert summary["eval_seconds"] > 0.0
        assert summary["env_steps_per_second"] == pytest.approx(800 / summary["train_seconds"])
        assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [400, 800]
        assert HMASD.load(folder / "model.zip").num_timesteps == 800

        out = capsys.readouterr().out
        assert f"success rate     {summary['success_rate']:.2f} (4 episodes, deterministic" in out
        assert "800 environment steps" in out
        assert str(folder.relative_to(in_tmp)) in out
        if summary["success_rate"] < 0.95:
            assert "does not solve the game" in out

    def test_game_without_success_pictures_or_evaluations(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [*SMALL, "--env", f"{__name__}:BlindGame", "--eval-freq", "100000", "--out", "here"]
        assert demo.main(arguments) == 0
        summary = json.loads(Path("here/summary.json").read_text(encoding="utf-8"))
        assert summary["success_rate"] is None
        assert summary["mean_return"] == pytest.approx(6.0)
        assert summary["first_solved_timesteps"] is None
        out = capsys.readouterr().out
        assert "reports no success" in out
        assert "no episode.gif: TypeError" in out
        assert "no learning_curve.png" in out
        assert {path.name for path in Path("here").iterdir()} == {"model.zip", "summary.json", "tensorboard"}

    def test_never_writes_into_a_folder_with_files(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = in_tmp / "earlier"
        out.mkdir()
        (out / "model.zip").write_text("precious")
        with pytest.raises(SystemExit) as stopped:
            demo.main([*SMALL, "--out", str(out)])
        assert stopped.value.code == 2
        assert "already holds files" in capsys.readouterr().err
        assert (out / "model.zip").read_text() == "precious"

    def test_runs_of_the_same_second_get_folders_of_their_own(self, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo.time, "strftime", lambda _: "20300101-000000")
        settings = demo._parse(["--env", "some.module:game"])
        folders = [demo._make_folder(settings).name for _ in range(3)]
        assert folders[0] == "some.module-game-seed0-20300101-000000"
        assert len(set(folders)) == 3

    def test_missing_package_is_named_before_any_work(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "imageio", None)
        with pytest.raises(SystemExit) as stopped:
            demo.main(SMALL)
        assert stopped.value.code == 2
        assert re.search(r'needs the package "imageio".*pip install "hmasd-sb3\[demo\]"', capsys.readouterr().err)
        assert list(in_tmp.iterdir()) == []

    @pytest.mark.parametrize("option", ["--n-envs", "--total-timesteps", "--eval-freq", "--eval-episodes"])
    def test_refuses_counts_below_one(self, option: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            demo.main([option, "0"])
        assert stopped.value.code == 2
        assert "must be at least 1, got 0" in capsys.readouterr().err


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_keeps_the_model_and_says_how_to_go_on(self, tmp_path: Path, number: signal.Signals) -> None:
        process = start_demo(tmp_path, "--total-timesteps", "10_000_000", "--eval-freq", "10_000_000")
        wait_for_line(process, "Results go to")
        time.sleep(1.0)  # long enough for a few rollouts and updates
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert not (tmp_path / "run" / "model.zip").exists()
        model = HMASD.load(tmp_path / "run" / "model_interrupted.zip")
        assert 0 < model.num_timesteps < 10_000_000
        assert f"Stopped after {model.num_timesteps:,} of 10,000,000 environment steps" in out
        follow(out, tmp_path, model.num_timesteps)

    def test_signal_at_once_after_the_start(self, tmp_path: Path) -> None:
        process = start_demo(tmp_path)
        wait_for_line(process, "Results go to")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in err) == (130, False), err
        assert "model_interrupted.zip" in out

    def test_signal_cuts_an_evaluation_short(self, tmp_path: Path) -> None:
        """A thousand times a thousand episodes would take hours."""
        process = start_demo(tmp_path, "--eval-freq", "4", "--eval-episodes", "1_000_000")
        wait_for_line(process, "Results go to")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in err) == (130, False), err
        assert (tmp_path / "run" / "model_interrupted.zip").exists()

    def test_signal_during_the_final_evaluation_keeps_the_finished_model(self, tmp_path: Path) -> None:
        process = start_demo(tmp_path, "--total-timesteps", "400", "--eval-episodes", "1_000_000")
        wait_for_line(process, "Evaluating the final model")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in err) == (130, False), err
        assert "Interrupted" in out
        assert HMASD.load(tmp_path / "run" / "model.zip").num_timesteps == 400

    def test_first_signal_asks_and_the_second_insists(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        with StopRequest() as stop:
            with stop.deferred():
                os.kill(os.getpid(), signal.SIGINT)
                assert stop.requested
                assert not StopRequestCallback(stop)._on_step()
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before

    def test_works_without_handlers_outside_the_main_thread(self) -> None:
        results: list[bool] = []

        def use() -> None:
            with StopRequest() as stop, stop.deferred():
                results.append(stop.requested)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert results == [False]


def test_evaluation_time_is_told_apart_from_training_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    env = make_team_vec_env("AliceAndBob-v0", n_envs=2, seed=0)
    evaluation = ReportingEvalCallback(
        make_team_vec_env("AliceAndBob-v0", n_envs=2, seed=1),
        StopRequest(),
        n_eval_episodes=4,
        eval_freq=50,
        log_path=str(tmp_path),
    )
    started = time.perf_counter()
    HMASD("MlpPolicy", env, n_steps=25, seed=0).learn(200, callback=evaluation)
    assert 0.0 < evaluation.seconds < time.perf_counter() - started
    assert evaluation.timesteps == [100, 200]
    assert len(evaluation.success_rates) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps: " in line]
    assert len(lines) == 2
    results = r"success \d\.\d\d, return -?\d+\.\d\d, length \d+\.\d"
    assert re.search(rf" 100 steps: 50%, {results}, about 0:\d\d left, \d+ steps per second$", lines[0])
    assert "left" not in lines[1]


def test_readme_examples_run(in_tmp: Path) -> None:
    """The first and the last example, shrunken, one after the other as a reader would type them."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = blocks[0] + blocks[-1]
    for text, shrunken in {
        "n_envs=32": "n_envs=4",
        "320_000": "400",
        "n_eval_episodes=100": "n_eval_episodes=4",
    }.items():
        assert text in code
        code = code.replace(text, shrunken)
    (in_tmp / "logs").mkdir()
    np.savez("logs/evaluations.npz", timesteps=[1], results=[[0.0]], ep_lengths=[[1]])
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"].num_timesteps == 400
    assert names["summary"].choices
    assert all(Path(name).exists() for name in ("alice_and_bob.zip", "runs/tb", "curve.png", "episode.gif"))


def test_readme_names_real_hyperparameters() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Hyperparameters")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `(\w+)`( \*)? \|", table, re.MULTILINE)
    assert len(names) > 15
    model = HMASD("MlpPolicy", make_team_vec_env("AliceAndBob-v0", n_envs=1), n_steps=10)
    parameters = inspect.signature(HMASD).parameters
    assert {name for name, _ in names} <= set(parameters)
    for name, starred in names:
        takes_schedule = "Schedule" in parameters[name].annotation
        assert bool(starred) == takes_schedule, f"{name} is {'' if starred else 'not '}marked as taking a schedule"
        assert hasattr(model, name)


def start_demo(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hmasd_sb3.demo", "--n-envs", "4", "--out", str(folder / "run"), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_line(process: "subprocess.Popen[str]", start: str) -> None:
    """Read the process' output up to a line; fails if the process ends before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    assert process.stderr is not None
    pytest.fail(f"the demo ended without the line {start!r}: {process.stderr.read()}")


def follow(out: str, folder: Path, n_done: int) -> None:
    """The printed lines must work as they stand; only the length of the training is cut here."""
    code = "\n".join(line.strip() for line in out.splitlines() if line.startswith("    "))
    assert f"model.learn({10_000_000 - n_done:_}, reset_num_timesteps=False)" in code
    names: dict[str, Any] = {}
    exec(re.sub(r"model\.learn\([\d_]+", "model.learn(400", code), names)
    assert names["model"].num_timesteps >= n_done + 400
