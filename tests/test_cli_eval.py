"""The command ``hmasd eval``: a saved model only, which stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, TESTS, files_below, hmasd, train
from PIL import Image

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.monitoring import evaluate_skills
from hmasd_sb3.monitoring.plots import bootstrap_mean
from hmasd_sb3.running import evaluating


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two complete runs, "plain" and "normalized"."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = [*SMALL, "--total-timesteps", "192", "--set", "env_kwargs={size: 5, max_steps: 30}", "--seed", "3"]
    assert hmasd("train", *arguments, "--run-dir", str(folder / "plain")) == 0
    assert hmasd("train", *arguments, "--run-dir", str(folder / "normalized"), "--set", "normalize=true") == 0
    return folder


@pytest.fixture(autouse=True)
def in_tmp(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the runs in it."""
    for name in ("plain", "normalized"):
        shutil.copytree(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert hmasd("eval", *arguments, "--json") == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_person_reads(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, model = files_below(in_tmp), digest(in_tmp / "plain/model.zip")
    assert hmasd("eval", "plain", "--episodes", "6") == 0
    out = capsys.readouterr().out
    assert "plain/model.zip, trained for 192 environment steps, on AliceAndBob-v0" in out
    assert "6 episodes, most probable skills and actions, seed 20003, 6 environments side by side" in out
    assert re.search(r"mean return +\d\.\d{3} ± \d\.\d{3}, 95 % interval \d\.\d{3} to \d\.\d{3} \(bootstrap\)", out)
    assert re.search(r"success rate +\d\.\d{3}, 95 % interval \d\.\d{3} to \d\.\d{3} \(Wilson\)", out)
    assert re.search(r"episode length +\d+\.\d ± \d+\.\d, \d+ to 30; \d+% ended by a time limit", out)
    for name in ("team", "alice", "bob"):
        assert re.search(rf"^  {name} +\d+% +\(\d+\)", out, re.MULTILINE)
    assert (files_below(in_tmp), digest(in_tmp / "plain/model.zip")) == (before, model)


def test_the_numbers_are_those_of_evaluate_skills(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "plain", "--episodes", "5", "--n-envs", "2", "--seed", "7")
    env = make_team_vec_env("AliceAndBob-v0", 2, env_kwargs={"size": 5, "max_steps": 30})
    wanted = evaluate_skills(HMASD.load("plain/model.zip", env=env), env, 5, seed=7)
    assert got["returns"] == wanted.returns.tolist()
    assert got["lengths"] == wanted.lengths.tolist()
    assert wanted.usage is not None
    assert got["skills"] == {name: value.tolist() for name, value in wanted.usage._asdict().items()}
    assert (got["episodes"], got["n_envs"], got["seed"], got["deterministic"]) == (5, 2, 7, True)
    assert got["agents"] == ["alice", "bob"]
    assert got["success_rate"] == wanted.success_rate


def test_it_is_repeated_by_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plain", "--episodes", "8", "--stochastic"]
    first, second, other = (answer(capsys, *arguments, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == second
    assert first["skills"] != other["skills"]
    assert first["deterministic"] is False


def test_which_model_is_meant(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--episodes", "2")
    assert answer(capsys, "plain", *few)["model"] == "plain/model.zip"
    assert answer(capsys, "plain", "--best", *few)["model"] == "plain/checkpoints/best.zip"
    assert answer(capsys, "plain/checkpoints/checkpoint_000000000144.zip", *few)["timesteps"] == 144
    shutil.copy("plain/model.zip", "bare.zip")
    got = answer(capsys, "bare.zip", "--env", "AliceAndBob-v0", "--set", "env_kwargs={size: 5, max_steps: 9}", *few)
    assert (got["model"], got["lengths"], got["seed"]) == ("bare.zip", [9, 9], 20_000)


def test_another_environment_of_the_same_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, "plain", "--episodes", "2", "--set", "env_kwargs={size: 5, max_steps: 4}")
    assert got["lengths"] == [4, 4]


class TestNormalization:
    def test_statistics_come_with_the_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        """From the model file itself, so that --best and a folder without ``vecnormalize.pkl`` are right too."""
        first = answer(capsys, "normalized", "--episodes", "6")
        Path("normalized/vecnormalize.pkl").unlink()
        assert answer(capsys, "normalized", "--episodes", "6") == first
        assert answer(capsys, "normalized", "--best", "--episodes", "6")["timesteps"] == 96

    def test_they_are_used(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        from hmasd_sb3.running import evaluating

        seen = []

        def look(model: HMASD, env: object, *arguments: object, **kwargs: object) -> object:
            normalizer = model.get_vec_normalize_env()
            assert normalizer is not None
            seen.append((normalizer.training, normalizer.norm_reward, normalizer.obs_rms["obs"].mean.copy()))
            result = evaluate_skills(model, env, *arguments, **kwargs)  # type: ignore[arg-type]
            assert np.array_equal(normalizer.obs_rms["obs"].mean, seen[-1][2])
            return result

        monkeypatch.setattr(evaluating, "evaluate_skills", look)
        assert hmasd("eval", "normalized", "--episodes", "2") == 0
        ((training, norm_reward, mean),) = seen
        assert (training, norm_reward) == (False, False)
        assert np.abs(mean).max() > 0.01

    def test_without_statistics_it_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, message in (
            (["plain", "--set", "normalize=true"], "holds no statistics of VecNormalize, though normalize=True asks for them"),
            (["normalized", "--set", "normalize=false"], "was trained behind a VecNormalize"),
        ):
            assert hmasd("eval", *arguments) == 2
            assert message in capsys.readouterr().err


def test_a_window(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    got = answer(capsys, "plain", "--render", "--episodes", "1", "--set", "env_kwargs={size: 5, max_steps: 3}")
    assert (got["n_envs"], got["lengths"]) == (1, [3])


def test_a_game_that_tells_no_render_modes_may_have_a_window_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    train("--env", "cli_games:DrawnTeam", "--total-timesteps", "48", "--eval-freq", "0", "--run-dir", "drawn")
    arguments = ["--render", "--episodes", "1", "--set", "env_kwargs={modes: []}"]
    assert answer(capsys, "drawn", *arguments)["n_envs"] == 1


def test_pictures(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("plain", "normalized"):
        assert hmasd("eval", run, "--episodes", "2", "--gif", f"{run}.gif", "--plot", f"new/{run}.png") == 0
        assert f"Wrote {run}.gif." in capsys.readouterr().out
        with Image.open(f"{run}.gif") as gif:
            assert getattr(gif, "n_frames", 1) > 2
        assert Image.open(f"new/{run}.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.zip"], "nothing.zip: there is no such model file or run folder"),
        (["."], "is no folder of a run: there is no config.json in it"),
        (["plain/config.json"], "is not a model file"),
        (["bare.zip"], "lies in no folder of a run, so its environment is not known: give it by --env"),
        (["bare.zip", "--env", "AliceAndBo-v0"], "'AliceAndBo-v0' is registered neither"),
        (
            ["plain", "--set", "env_kwargs={}"],
            "plain/model.zip: the model was trained for 2 agents that see 27 numbers each, with a state of 52 numbers, 4 "
            "actions, discriminator_obs, .*; this game has 2 agents that see 66 numbers each, with a state of 130 numbers",
        ),
        (
            ["plain", "--env", "cli_games:DrawnTeam", "--set", "env_kwargs={n_agents: 3, kind: masked}"],
            "this game has 3 agents that see 3 numbers each, with a state of 4 numbers, 3 actions, action_mask.",
        ),
        (["plain", "--set", "gamma=0.5"], "only env_kwargs and normalize can be set here, as nothing is trained"),
        (["plain/model.zip", "--best"], "--best is for a run's folder"),
        (["early"], "the run is not complete, so there is no model.zip. Give one of its checkpoints, such as early/"),
        (["early", "--best"], "the run has made no evaluation yet"),
        (["plain", "--render", "--env", "odd_games:OddTeam"], "--render: .*'render_mode'. .--gif writes an episode instead"),
    ],
)
def test_wrong_input(in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    shutil.copy("plain/model.zip", "bare.zip")
    shutil.copytree("plain", "early")
    (in_tmp / "early/model.zip").unlink()
    (in_tmp / "early/checkpoints/best.zip").unlink()
    before = files_below(in_tmp)
    assert hmasd("eval", *arguments) == 2
    assert re.fullmatch(rf"Error: .*{message}.*\n", capsys.readouterr().err)
    assert files_below(in_tmp) == before


def test_a_missing_package_is_named_before_any_play(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == "imageio":
                raise ModuleNotFoundError("No module named 'imageio'", name="imageio")

    for name in [name for name in sys.modules if name.partition(".")[0] == "imageio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    assert hmasd("eval", "plain", "--gif", "e.gif") == 2
    assert 'pip install "hmasd-sb3[demo]"' in capsys.readouterr().err


def test_a_broken_game_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "cli_games:FaultyTeam", "--eval-freq", "0", "--total-timesteps", "48"]
    assert train(*arguments, "--run-dir", "faulty") == 0
    capsys.readouterr()
    assert hmasd("eval", "faulty", "--set", "env_kwargs={fault: raise, at: 3}", "--json") == 4
    out, err = capsys.readouterr()
    assert json.loads(out) == {"exit_code": 4, "error": "an environment raised RuntimeError: the game broke"}
    assert "Error: an environment raised RuntimeError: the game broke" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain", "--gif", "config.json/e.gif"], "--gif config.json/e.gif: cannot be written: "),
        (["plain", "--plot", "folder.png"], "--plot folder.png: is a folder, not a file."),
        (["odd", "--gif", "e.gif"], "--gif: "),
        (["plain", "--gif", "e.mp4"], "--gif e.mp4: the name must end in .gif, as no other format is written."),
        (["plain", "--gif", "e"], "--gif e: the name must end in .gif"),
        (["plain", "--plot", "new/s.foo"], "--plot new/s.foo: the name must end in .png, as no other format is written."),
        (
            ["drawn", "--render"],
            "--render: the game has no render mode 'human' (it has rgb_array); use --gif.",
        ),
        (
            ["drawn", "--render", "--set", "env_kwargs={modes: [ansi]}"],
            "--render: the game has no render mode 'human' (it has ansi).",
        ),
    ],
)
def test_what_cannot_be_written_or_shown_costs_no_play(
    in_tmp: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train("--env", "teams:RandomTeam", "--total-timesteps", "48", "--eval-freq", "0", "--run-dir", "odd")
    train("--env", "cli_games:DrawnTeam", "--total-timesteps", "48", "--eval-freq", "0", "--run-dir", "drawn")
    Path("config.json").touch()
    Path("folder.png").mkdir()
    before = files_below(in_tmp)
    capsys.readouterr()
    monkeypatch.setattr(evaluating, "evaluate_skills", lambda *_, **__: pytest.fail("it was played"))
    assert hmasd("eval", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: {message}")
    assert err.count("\n") == 1
    assert files_below(in_tmp) == before


def test_the_interval_of_many_episodes_needs_little_memory() -> None:
    returns = np.arange(3000.0) % 7
    tracemalloc.start()
    low, high = bootstrap_mean(np.stack([returns, 2 * returns]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    picks = np.random.default_rng(0).integers(3000, size=(2000, 3000))
    wanted = np.quantile(returns[picks].mean(axis=1), (0.025, 0.975))
    np.testing.assert_array_equal([low[0], high[0]], wanted)
    np.testing.assert_allclose([low[1], high[1]], 2 * wanted)


def test_json_is_all_even_if_workers_print(in_tmp: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "cli_games:talkative", "--episodes", "4", "--n-workers", "2"]
    train("--env", "cli_games:talkative", "--total-timesteps", "48", "--eval-freq", "0", "--run-dir", "talkative")
    # A process of its own: workers have the outputs of the first process that started any.
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "hmasd_sb3.cli", "eval", "talkative", *arguments, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    assert json.loads(ended.stdout)["episodes"] == 4
    assert ended.stderr.count("a game of many words") >= 4
    capfd.readouterr()
    assert hmasd("eval", "talkative", *arguments[:-2], "--json") == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 4
    print("standard output is itself again")
    assert capfd.readouterr().out == "standard output is itself again\n"
