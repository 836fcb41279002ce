"""The command ``hmasd tune``: real workers, real storages, real kills."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
from commands import TESTS, alive, hmasd, wait_until
from optuna.trial import FrozenTrial
from tuning import ALICE, quick_options

from hmasd_sb3.tuning.command import _divide
from hmasd_sb3.tuning.report import state_of
from hmasd_sb3.tuning.storage import open_storage
from hmasd_sb3.tuning.study import RETRY_OF, WORKER

STUDY = "--study=s"


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Studies land in the working directory, which must not be the checkout."""
    monkeypatch.chdir(tmp_path)
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # for workers
    return tmp_path


@pytest.fixture(params=["journal", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sqlite", "postgresql"))])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "journal":
        yield str(tmp_path / "study.journal")
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
    else:
        if reason := postgres.why_not():
            pytest.skip(reason)
        pytest.importorskip("psycopg")
        with postgres.server() as url:
            yield url


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hmasd_sb3.cli", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


class Looking:
    """At a study from outside."""

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self._study: optuna.Study | None = None

    def trials(self) -> list[FrozenTrial]:
        if self._study is None:
            try:
                if not self.storage.startswith("postgresql") and not Path(self.storage.removeprefix("sqlite:///")).exists():
                    return []
                self._study = optuna.load_study(study_name="s", storage=open_storage(self.storage).storage)
            except KeyError:
                return []
        return self._study.get_trials(deepcopy=False)

    def states(self) -> list[str]:
        return [state_of(trial) for trial in self.trials()]

    def halfway(self) -> list[FrozenTrial]:
        """Trials at work that were evaluated at least once."""
        return [trial for trial in self.trials() if trial.state.name == "RUNNING" and trial.intermediate_values]


def pid_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs[WORKER].split("-")[-2])


def test_a_killed_worker_costs_no_trial(storage: str) -> None:
    """Two workers, one killed in the middle of a trial; then all killed, and the same command goes on."""
    slow = ["--env=cli_games:SlowTeam", "--metric=return", "--total-timesteps=240", "--n-evaluations=6", "--pruner=none"]
    arguments = [*quick_options(*slow), f"--storage={storage}", STUDY, "--workers=2", "--out=out", "--trials=4"]
    process = start(*arguments)
    looking = Looking(storage)
    wait_until(looking.halfway, process)
    victim = looking.halfway()[0]
    os.kill(pid_of(victim), signal.SIGKILL)
    retry = wait_until(lambda: [t for t in looking.trials() if t.user_attrs.get(RETRY_OF) == victim.number], process)[0]
    wait_until(lambda: looking.halfway() and "waiting" not in looking.states(), process)

    def signed() -> list[int]:
        """Processes of all running trials, once each has told its own."""
        running = [trial for trial in looking.trials() if trial.state.name == "RUNNING"]
        return [pid_of(trial) for trial in running] if all(WORKER in trial.user_attrs for trial in running) else []

    at_work = wait_until(signed, process)
    process.kill()
    for pid in at_work:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    # One that was killed in the middle of writing holds up the others for half a minute, which Optuna says.
    assert [line for line in err.splitlines() if "lock file" not in line] == []
    assert process.returncode == -signal.SIGKILL
    assert "was killed by SIGKILL" in out
    assert f"trial {victim.number:>3} killed: the worker" in out
    assert f"(tried again as trial {retry.number})" in out
    assert "RUNNING" in [trial.state.name for trial in looking.trials()]
    assert hmasd("tune", *arguments, "--workers=1") == 0
    trials = looking.trials()
    states = looking.states()
    assert states.count("complete") == 4
    assert set(states) == {"complete", "killed"}
    killed = [trial.number for trial in trials if state_of(trial) == "killed"]
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sorted(t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs) == killed
    for trial in trials:
        if RETRY_OF in trial.user_attrs:
            # One that was killed as well may not have come to choose yet.
            values = {**trial.system_attrs["fixed_params"], **trial.params}
            assert trials[trial.user_attrs[RETRY_OF]].params.items() <= values.items()
    assert trials[0].user_attrs["origin"] == "defaults"
    wait_until(lambda: not any(alive(pid) for pid in at_work))
    with Path("out/trials.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == states


def test_ctrl_c_puts_trials_back_and_the_same_command_goes_on() -> None:
    arguments = [*quick_options(ALICE, "--total-timesteps=100000000"), "--storage=s.journal", STUDY, "--out=out", "--trials=2"]
    process = start(*arguments, "--workers=2")
    looking = Looking("s.journal")
    wait_until(lambda: [WORKER in trial.user_attrs for trial in looking.trials()] == [True, True], process)
    at_work = [pid_of(trial) for trial in looking.trials()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "Stopping: trials that are at work go back into the queue." in out
    assert looking.states() == ["interrupted", "interrupted", "waiting", "waiting"]
    assert not any(alive(pid) for pid in at_work)
    assert not Path("out/best.yml").exists()
    assert json.loads(Path("out/study.json").read_text())["best"] is None


def test_a_worker_that_is_asked_to_end_is_not_the_end_of_the_study() -> None:
    """As tools do that end programs before memory runs out."""
    slow = ["--env=cli_games:SlowTeam", "--metric=return", "--total-timesteps=240", "--n-evaluations=6"]
    process = start(*quick_options(*slow), "--storage=s.journal", STUDY, "--trials=2", "--out=out")
    looking = Looking("s.journal")
    wait_until(looking.halfway, process)
    os.kill(pid_of(looking.halfway()[0]), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "was stopped by SIGTERM; another takes its place" in out
    assert sorted(looking.states()) == ["complete", "complete", "interrupted"]


def test_workers_end_with_their_supervisor() -> None:
    process = start(
        *quick_options(ALICE, "--total-timesteps=100000000"), "--storage=s.journal", STUDY, "--workers=1", "--vary=0"
    )
    looking = Looking("s.journal")
    wait_until(lambda: [WORKER in trial.user_attrs for trial in looking.trials()] == [True], process)
    process.kill()
    process.communicate()
    wait_until(lambda: not alive(pid_of(looking.trials()[0])))
    assert looking.states() == ["interrupted", "waiting"]


class TestFaults:
    def test_a_bug_stops_the_study_with_its_error(self, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = [*quick_options("--env=cli_games:FaultyTeam", "--metric=return"), "--out=out", "--workers=2"]
        assert hmasd("tune", *arguments, "--set=env_kwargs={at: 10}", "--trials=9") == 4
        out = capfd.readouterr().out
        assert "trial   0 crashed: RuntimeError: the game broke" in out
        assert "Traceback" in out
        assert "failed: RuntimeError: the game broke" in out
        with Path("out/trials.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert 1 <= len([row for row in rows if row["state"] == "crashed"]) <= 2
        assert {row["state"] for row in rows} <= {"crashed", "interrupted", "waiting"}
        assert rows[0]["error"] == "RuntimeError: the game broke"
        assert rows[0]["n_steps"] == "12"

    def test_a_game_that_exits_is_a_crash(self, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = [*quick_options("--env=cli_games:FaultyTeam", "--metric=return"), "--out=out", "--trials=9"]
        assert hmasd("tune", *arguments, "--set=env_kwargs={at: 10, fault: exit}") == 4
        assert "trial 0 failed: SystemExit: 0" in capfd.readouterr().out

    @pytest.mark.slow
    def test_workers_that_die_again_and_again(self, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = [*quick_options("--env=cli_games:FaultyTeam", "--metric=return"), "--out=out", "--trials=9"]
        assert hmasd("tune", *arguments, "--set=env_kwargs={at: 10, fault: kill}", "--max-failures=1") == 4
        out = capfd.readouterr().out
        assert out.count("was killed by SIGKILL") == 3
        assert "so 3 times, not tried again" in out


class TestWrongInput:
    def test_a_game_that_would_ruin_every_trial(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        game = ["--env=cli_games:FaultyTeam", "--metric=return", "--set=env_kwargs={fault: nan, at: 3}"]
        assert hmasd("tune", *quick_options(*game), "--check") == 2
        err = capsys.readouterr().err
        assert "NaN" in err
        assert "--no-check leaves that out" in err
        assert list(in_tmp.iterdir()) == []

    def test_it_is_one_line_and_nothing_is_written(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, message in (
            (["--env", "AliceAndBob-v1"], "AliceAndBob"),
            (["--set", "gama=0.9"], "Did you mean 'gamma'"),
            (["--search", "gama"], "Did you mean 'gamma'"),
            (["--sampler", "best"], "--sampler best: must be one of tpe, random"),
            (["--pruner", "best"], "must be one of median, halving, none"),
            (["--aggregate", "best"], "must be one of mean, min, q25"),
            (["--metric", "best"], "must be one of auto, success, return"),
            (["--storage", "redis://x"], "must be the path of a journal file"),
            (["--n-evaluations", "99"], "leaves no step of 4 environments"),
            (["--enqueue-paper", "chess"], "no scenario 'chess'"),
            (["--env", "cli_games:refusing", "--set", "env_kwargs={}"], "this game cannot be made"),
            (["--set", "policy_kwargs={hidden: 3}"], "policy_kwargs has no 'hidden'"),
        ):
            assert hmasd("tune", *quick_options(ALICE), *arguments) == 2
            err = capsys.readouterr().err
            assert err.startswith("Error: ")
            assert err.count("\n") == 1
            assert message in err
            assert not list(in_tmp.iterdir())

    def test_a_folder_for_the_files_that_cannot_be_written_to(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "file").touch()
        assert hmasd("tune", *quick_options(ALICE, "--storage=s.journal", STUDY), "--out=file/x") == 2
        assert capsys.readouterr().err.startswith("Error: --out file/x: cannot be written to: ")
        assert Looking("s.journal").states() == ["waiting"]  # the defaults

    def test_another_study_under_the_same_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["tune", *quick_options(ALICE, "--storage=s.journal", "--timeout=0")]
        assert hmasd(*arguments) == 0
        assert hmasd(*arguments, "--seeds=2") == 2
        assert "was made with seeds [0], not [0, 1]." in capsys.readouterr().err


def test_a_file_of_the_package_says_where_to_begin_and_what_is_not_searched() -> None:
    in_force = {"gamma": 0.9, "vf_coef": 2.0, "n_steps": 40, "clip_range": 0.1}
    assert _divide(in_force, {"n_steps": 40}, ["ppo"]) == ({"n_steps": 40, "vf_coef": 2.0}, {"gamma": 0.9, "clip_range": 0.1})
    assert _divide(in_force, in_force, None) == (in_force, {})


def test_json_is_all_that_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert hmasd("tune", *quick_options(ALICE), "--trials=2", "--json", "--enqueue-paper=alice_and_bob", STUDY) == 0
    out, err = capfd.readouterr()
    assert "New study 's'" in err
    assert "2 of 2" in err
    found: dict[str, Any] = json.loads(out)
    assert (found["exit_code"], found["study"], found["trials"]) == (0, "s", {"complete": 2})
    looking = Looking("runs/tune-AliceAndBob-v0/study.journal")
    assert [trial.user_attrs["origin"] for trial in looking.trials()] == ["defaults", "paper's setting"]
    paper = looking.trials()[1].user_attrs["hyperparameters"]
    assert (paper["critic_chance_offset"], paper["clip_range_vf"]) == (False, 0.2)
    # Settings of the command go before those of the paper.
    assert (paper["n_steps"], paper["n_epochs"]) == (12, 1)
    assert paper["batch_size"] == 48


def test_json_with_games_that_print_and_wrong_input(capfd: pytest.CaptureFixture[str]) -> None:
    game = ["--env=cli_games:talkative", "--metric=return"]
    assert hmasd("tune", *quick_options(*game), "--trials=1", "--json", STUDY) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["trials"] == {"complete": 1}
    assert err.count("a game of many words") > 1  # here, and in the worker
    assert hmasd("tune", *quick_options(ALICE), "--total-timesteps=1.5", "--json") == 2
    assert capfd.readouterr().out == ""
    assert hmasd("tune", *quick_options(ALICE), "--sampler=best", "--json") == 2
    found = json.loads(capfd.readouterr().out)
    assert found == {"exit_code": 2, "error": "--sampler best: must be one of tpe, random."}


def test_what_was_not_asked_for_is_said(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd("tune", *quick_options(ALICE, "--timeout=0", STUDY)) == 0
    assert re.search(
        r"Settings for AliceAndBob-v0 are those of .*hmasd\.yml, where nothing else is said\.", capsys.readouterr().out
    )
    (in_tmp / "one.yml").write_text("cli_games:SlowTeam:\n  gamma: 0.9\n")
    assert hmasd("tune", *quick_options("--config=one.yml", "--timeout=0", "--metric=return", "--out=other")) == 0
    assert "one.yml has settings for cli_games:SlowTeam alone, so that is the environment." in capsys.readouterr().out


def test_the_budget_may_be_written_as_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*quick_options(ALICE, "--timeout=0", STUDY), "--total-timesteps=1e2", "--json"]
    assert hmasd("tune", *arguments) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["total_timesteps"] == 100
