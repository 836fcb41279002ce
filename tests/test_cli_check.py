"""The checks of an environment before a training, and the command ``hmasd check``."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from commands import SMALL, assert_same_metrics, files_below, hmasd, same_parameters
from odd_games import OddTeam

from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.env_check import MIN_STEPS, TrialReport, try_environment
from hmasd_sb3.running.trial_team import TrialTeam

CHECKED = [*(argument for argument in SMALL if argument != "--no-check"), "--eval-freq", "0"]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trial(odd: str, at: int = 5, n_steps: int = 100, **settings: object) -> TrialReport:
    config = RunConfig(env="odd_games:OddTeam", env_kwargs={"odd": odd, "at": at}, **settings)  # type: ignore[arg-type]
    return try_environment(config, n_steps)


@pytest.mark.parametrize(
    ("odd", "convention", "what"),
    [
        ("nan", "finite observations", "the observation at step 5 has NaN in 'obs'."),
        ("infinity", "finite observations", "the observation at step 5 has infinity in 'state'."),
        ("shape", "the shape of the observation space", "the observation at step 5 has 'obs' of shape (2, 1), not (2, 3)."),
        ("complex", "numbers", "the observation at step 5 has 'state' of dtype complex128."),
        ("keys", "the keys of the observation space", "has the keys ['obs'], its space ['obs', 'state']."),
        ("no dict", "a Dict observation", "is a ndarray, not a dict."),
        ("no legal action", "a legal action for everybody", "leaves agent 0 no legal action in 'action_mask'."),
        ("nobody", "somebody is there", "has nobody in 'agent_mask'."),
        ("nan reward", "finite rewards", "the reward at step 5 is nan."),
        ("raise", "no exceptions", "step 5 raised RuntimeError: the game broke."),
    ],
)
def test_what_would_ruin_a_training_is_an_error(odd: str, convention: str, what: str) -> None:
    report = trial(odd)
    assert [(one.level, one.convention) for one in report.findings if one.level == "error"] == [("error", convention)]
    assert what in report.errors[0].what
    assert report.errors[0].remedy
    assert report.steps <= 5


@pytest.mark.parametrize("odd", ["nan", "shape", "no legal action"])
def test_the_first_observation_is_looked_at(odd: str) -> None:
    report = trial(odd, at=0)
    assert report.errors[0].what.startswith("the first observation ")
    assert report.steps == 0


@pytest.mark.parametrize(
    ("odd", "convention", "what"),
    [
        ("both ends", "one end per episode", "was both terminated and truncated; it counts as terminated."),
        ("endless", "episodes end", "none ended within 100 random steps."),
        ("unseeded", "reset(seed=...) decides the episode", "two resets with the same seed gave different observations"),
        ("drift", "same seed, same actions, same episode", "step 1 after the same reset, with the same actions"),
        ("warn", "no warnings from the game or a library", "the game is unwell"),
    ],
)
def test_what_makes_it_worse_is_a_warning(odd: str, convention: str, what: str) -> None:
    report = trial(odd, at=0 if odd == "both ends" else 5)
    assert not report.errors
    (finding,) = [one for one in report.findings if one.level == "warning"]
    assert finding.convention == convention
    assert what in finding.what
    assert report.steps == 100


def test_bounds_and_bytes() -> None:
    config = RunConfig(env="odd_games:NarrowTeam", env_kwargs={"odd": "bounds"})
    levels = {one.convention: one.level for one in try_environment(config, 50).findings}
    assert levels["the bounds of the observation space"] == "warning"
    config = RunConfig(env="odd_games:NarrowTeam", env_kwargs={"odd": "bytes"})
    (error,) = try_environment(config, 50).errors
    assert error.convention == "the dtype of the observation space"


def test_slow_steps_suggest_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)

    def notes(**settings: object) -> list[str]:
        findings = trial("slow", at=0, n_steps=30, total_timesteps=3_600_000, **settings).findings
        return [f"{one.what} {one.remedy}" for one in findings if one.convention == "quick steps"]

    (note,) = notes()
    assert re.search(r"a step takes 3\.\d* ms, 3\.\d hours for 3,600,000 steps .* --n-workers 4 ", note)
    assert notes(n_workers=2) == []
    assert not [one for one in trial("").findings if one.convention == "quick steps"]


def test_a_sound_game_is_only_told_what_cannot_be_resumed() -> None:
    report = trial("", n_steps=300)
    assert [(one.level, one.convention) for one in report.findings] == [("note", "state for exact resume")]
    assert report.episodes > 10
    assert try_environment(RunConfig(), 300).findings == []


def test_play_ends_in_time() -> None:
    report = try_environment(RunConfig(env="odd_games:OddTeam", env_kwargs={"odd": "slow", "at": 0}), 10_000, 0.1)
    assert 5 <= report.steps <= 40


def test_a_game_that_ends_the_program() -> None:
    config = RunConfig(env="cli_games:FaultyTeam", env_kwargs={"fault": "exit", "at": 3})
    (error,) = try_environment(config, 50).errors
    assert "raised SystemExit: 0" in error.what


def test_a_slow_beginning_still_leaves_some_steps() -> None:
    slow = RunConfig(env="cli_games:SlowToBegin", env_kwargs={"first": 0.15})
    report = try_environment(slow, 10_000, 0.1)
    assert report.steps >= MIN_STEPS
    assert report.seconds_per_step is not None
    assert report.seconds_per_step < 0.1
    # But not if all of them are like that.
    report = try_environment(RunConfig(env="odd_games:OddTeam", env_kwargs={"odd": "slow", "at": 0}), 10_000, 0.003)
    assert 1 <= report.steps <= 6


def test_slow_resets_count_too() -> None:
    started = time.monotonic()
    report = try_environment(RunConfig(env="cli_games:SlowToBegin", env_kwargs={"reset": 0.05}), 1000, 0.3)
    assert MIN_STEPS <= report.steps < 200
    assert time.monotonic() - started < 3.0


def test_steps_taken_once_more_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    step = TrialTeam.step
    monkeypatch.setattr(TrialTeam, "step", lambda self, action: (calls.append(action), step(self, action))[1])
    endless = {"p_terminate": 0.0, "p_truncate": 0.0}
    report = try_environment(RunConfig(env="cli_games:SlowTeam", env_kwargs=endless), 50, 0.02)
    assert report.steps == MIN_STEPS
    assert 1 <= len(calls) - report.steps <= 10


def test_a_short_look_that_saw_no_end_only_notes_it() -> None:
    report = try_environment(RunConfig(env="odd_games:OddTeam", env_kwargs={"odd": "endless"}), 10**6, 0.02)
    assert {one.level for one in report.findings if one.convention == "episodes end"} == {"note"}


def test_global_generators_stay_as_they_are() -> None:
    random.seed(1)
    np.random.seed(2)
    th.manual_seed(3)
    wanted = (random.random(), np.random.random(), float(th.rand(())))
    random.seed(1)
    np.random.seed(2)
    th.manual_seed(3)
    try_environment(RunConfig(env="odd_games:GlobalNoise"), 50)
    assert (random.random(), np.random.random(), float(th.rand(()))) == wanted


def test_the_copy_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[OddTeam] = []
    monkeypatch.setattr(OddTeam, "close", lambda self: closed.append(self))
    trial("")
    trial("raise")
    assert len(closed) == 2


@pytest.mark.parametrize("env", ["AliceAndBob-v0", "odd_games:GlobalNoise"])
def test_a_training_is_the_same_with_and_without(in_tmp: Path, env: str, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, check in (("with", "--check"), ("without", "--no-check")):
        assert hmasd("train", *CHECKED, check, "--env", env, "--total-timesteps", "96", "--run-dir", folder) == 0
        assert ("Checked: 1,000 random steps" in capsys.readouterr().out) == (folder == "with")
    assert_same_metrics(in_tmp / "with", in_tmp / "without")
    assert same_parameters(in_tmp / "with/model.zip", in_tmp / "without/model.zip")


def test_train_refuses_what_would_ruin_it_and_writes_nothing(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "odd_games:OddTeam", "--set", "env_kwargs={odd: nan}", "--total-timesteps", "48"]
    assert hmasd("train", *CHECKED, *arguments) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"Error: finite observations: the observation at step 5 has NaN in 'obs'.*--no-check.*\n", err)
    assert files_below(in_tmp) == []
    assert hmasd("train", *CHECKED, *arguments, "--no-check") == 3


def test_train_tells_warnings_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "odd_games:OddTeam", "--set", "env_kwargs={odd: unseeded}", "--total-timesteps", "48"]
    assert hmasd("train", *CHECKED, *arguments, "--run-dir", "r") == 0
    out, err = capsys.readouterr()
    assert "Warning: reset(seed=...) decides the episode: two resets" in err
    assert "Note: state for exact resume: " in out
    (Path("r/model.zip")).unlink()
    assert hmasd("train", "--resume", "r", "--no-tensorboard") == 0
    assert "Checked" not in capsys.readouterr().out


class TestCommand:
    def test_sound(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("check", "--steps", "50") == 0
        out = capsys.readouterr().out
        assert "Played 50 random steps of one AliceAndBob-v0" in out

    def test_all_findings(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("check", "--env", "odd_games:OddTeam", "--set", "env_kwargs={odd: both ends}") == 0
        out = capsys.readouterr().out
        assert "Warning: one end per episode: " in out
        assert "Note: state for exact resume: " in out
        assert hmasd("check", "--env", "odd_games:OddTeam", "--set", "env_kwargs={odd: raise}") == 1
        out = capsys.readouterr().out
        assert "Error: no exceptions: step 5 raised RuntimeError: the game broke. Mend the game (" in out
        assert re.search(r"odd_games\.py, line \d+\)\.\n", out)

    def test_a_game_that_breaks_as_it_is_made(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("check", "--env", "odd_games:broken") == 1
        out, err = capsys.readouterr()
        assert "Error: no exceptions: making the game raised RuntimeError: no licence. Mend the game (" in out
        assert err == ""

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("check", "--env", "odd_games:OddTeam", "--set", "env_kwargs={odd: nan}", "--json") == 1
        out, err = capsys.readouterr()
        answer = json.loads(out)
        assert (answer["exit_code"], answer["env"], answer["steps"]) == (1, "odd_games:OddTeam", 5)
        assert answer["findings"][0]["convention"] == "finite observations"
        assert "Played 5 random steps" in err

    @pytest.mark.parametrize(
        ("env", "message"),
        [
            ("odd_games:not_a_team", "not a team environment"),
            ("nowhere:game", "cannot import 'nowhere'"),
            ("No-v0", "neither"),
        ],
    )
    def test_no_such_game(self, env: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("check", "--env", env) == 2
        assert re.fullmatch(rf"Error: .*{message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("check", ["--check", "--no-check"])
def test_a_state_that_is_lost_is_told_once(
    check: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By the check, or where there is none by what writes checkpoints."""
    assert hmasd("train", *CHECKED, check, "--env", "teams:RandomTeam", "--total-timesteps", "48", "--run-dir", "run") == 0
    noted = "Note: state for exact resume: teams.RandomTeam cannot give" in capsys.readouterr().out
    warned = "teams.RandomTeam cannot give" in caplog.text
    assert (noted, warned) == (check == "--check", check == "--no-check")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "env_kwargs={siz: 5}"],
            r"--set env_kwargs={siz: 5}: env_kwargs: .*unexpected keyword argument 'siz'",
        ),
        (
            ["--env", "meeting"],
            "There is a file meeting.py here: .*'meeting:parallel_env'. `hmasd envs` lists the games.",
        ),
    ],
)
def test_what_cannot_be_made_is_named_with_its_place(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("meeting.py").touch()
    assert hmasd("check", *arguments) == 2
    assert re.fullmatch(rf"Error: .*{message}.*\n", capsys.readouterr().err)
