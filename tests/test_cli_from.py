"""``hmasd train --from``: the same run once more, number by number; and what a run's folder says about itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import assert_same_metrics, break_off, files_below, hmasd, same_parameters, train

from hmasd_sb3.running.folder import RunFolder

AGAIN = ("train", "--no-tensorboard", "--checkpoint-freq", "48", "--no-check")
SETTINGS = """\
AliceAndBob-v0:
  n_timesteps: 192
  gamma: 0.9
  ent_coef: lin_0.02
  normalize: true
  env_kwargs: {size: 5}
"""


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def first(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run with settings from a file and from options; the file is gone afterwards."""
    (in_tmp / "s.yml").write_text(SETTINGS)
    arguments = ["--config", "s.yml", "--seed", "7", "--set", "target_kl=null", "--run-dir", "first"]
    assert train(*arguments, "--total-timesteps", "144") == 0
    (in_tmp / "s.yml").unlink()
    capsys.readouterr()
    return in_tmp / "first"


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text())
    return found


def rewrite(run: Path, **changes: Any) -> None:
    (run / "config.json").write_text(json.dumps({**content(run), **changes}))


def test_it_becomes_the_same(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd(*AGAIN, "--from", "first", "--run-dir", "second") == 0
    assert capsys.readouterr().err == ""
    assert_same_metrics(first, Path("second"))
    assert same_parameters(first / "model.zip", Path("second/model.zip"))
    one, other = (dict(np.load(run / "evaluations.npz")) for run in (first, Path("second")))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert content(Path("second"))["run"] == content(first)["run"]


def test_a_run_that_broke_off_can_be_repeated(first: Path) -> None:
    again = Path("again")
    assert hmasd(*AGAIN, "--from", "first", "--run-dir", "again") == 0
    break_off(again, 48)
    before = files_below(again)
    assert hmasd(*AGAIN, "--from", "again", "--run-dir", "third") == 0
    assert files_below(again) == before
    assert_same_metrics(first, Path("third"))


def test_options_beside_it_change_settings(first: Path) -> None:
    arguments = ["--seed", "8", "--total-timesteps", "1e2", "--set", "gamma=0.8", "--set", "env_kwargs={size: 6}"]
    assert hmasd(*AGAIN, "--from", "first", "--run-dir", "second", *arguments) == 0
    before, after = (content(run)["run"] for run in (first, Path("second")))
    hyperparameters = {**before["hyperparameters"], "gamma": 0.8}
    changed = {"seed": 8, "total_timesteps": 100, "env_kwargs": {"size": 6}, "hyperparameters": hyperparameters}
    assert after == {**before, **changed}
    assert not same_parameters(first / "model.zip", Path("second/model.zip"))


def test_another_game_does_not_get_the_arguments_of_the_first(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    game = ["--env", "cli_games:SlowTeam", "--set", "env_kwargs={}", "--set", "gamma=0.8"]
    for arguments in (game[:2], game):
        assert hmasd(*AGAIN, "--from", "first", *arguments, "--no-check") == 0
        assert "had in first are not those of cli_games:SlowTeam" in capsys.readouterr().err
    configs = [content(run)["run"] for run in sorted(Path("runs").iterdir())]
    assert [(config["env"], config["env_kwargs"]) for config in configs] == [("cli_games:SlowTeam", {})] * 2


def test_the_new_run_gets_a_folder_below_runs(first: Path) -> None:
    assert hmasd(*AGAIN, "--from", "first", "--total-timesteps", "48") == 0
    (run,) = Path("runs").iterdir()
    assert re.fullmatch(r"AliceAndBob-v0-seed7-\d{8}-\d{6}", run.name)


def test_it_may_be_put_into_a_script(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*AGAIN, "--from", "first", "--run-dir", "second", "--resume", "auto")
    assert hmasd(*arguments) == 0
    break_off(Path("second"), 48)
    capsys.readouterr()
    assert hmasd(*arguments) == 0
    assert "Going on from second/checkpoints/checkpoint_000000000048.zip" in capsys.readouterr().out
    assert_same_metrics(first, Path("second"))
    assert hmasd(*arguments, "--seed", "9") == 2
    assert "seed=9 was given, but the run in second has 7" in capsys.readouterr().err


def test_under_a_supervisor(first: Path) -> None:
    assert hmasd(*AGAIN, "--from", "first", "--run-dir", "second", "--max-restarts", "1") == 0
    assert_same_metrics(first, Path("second"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nothing"], "--from nothing: there is no such folder"),
        (["--from", "."], "holds no run: there is no config.json"),
        (["--from", "first", "--config", "s.yml"], "--from and --config both say what the settings are"),
        (["--from", "first", "--resume", "first"], "--from begins a new run and --resume goes on with one"),
        (["--from", "first", "--resume", "auto"], "--from begins a new run and --resume goes on with one"),
        (["--from", "first", "--run-dir", "first"], "holds a run already"),
        (["--from", "first", "--set", "gama=0.9"], "there is no setting 'gama'"),
        (["--from", "changed"], "--from changed: gamma must be a number"),
    ],
)
def test_wrong_input(
    first: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (in_tmp / "changed").mkdir()
    (in_tmp / "changed/config.json").write_text((first / "config.json").read_text().replace('"gamma": 0.9', '"gamma": "high"'))
    before = files_below(in_tmp)
    assert hmasd(*AGAIN, *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert files_below(in_tmp) == before


class TestWhatTheFolderSays:
    def test_the_command(self, first: Path) -> None:
        (command,) = content(first)["commands"]
        assert command.startswith("hmasd train --total-timesteps 144 --n-envs 4 --seed 7 --config s.yml --eval-freq 96 ")
        assert "--set target_kl=null" in command
        assert command.endswith("--no-check --run-dir first --checkpoint-freq 48 --no-tensorboard")
        assert hmasd(*AGAIN, "--resume", "first", "--total-timesteps", "192") == 0
        assert content(first)["commands"] == [
            command,
            "hmasd train --resume first --total-timesteps 192 --no-check --checkpoint-freq 48 --no-tensorboard",
        ]
        assert hmasd(*AGAIN, "--from", "first", "--run-dir", "second", "--max-restarts", "1", "--total-timesteps", "48") == 0
        (command,) = content(Path("second"))["commands"]
        assert command.startswith("hmasd train --from first --total-timesteps 48 ")
        assert command.endswith("--max-restarts 1")

    def test_versions_of_what_the_game_is_made_of(self, in_tmp: Path) -> None:
        pytest.importorskip("mpe2")
        arguments = ["--env", "mpe2.simple_spread_v3:parallel_env", "--eval-freq", "0", "--total-timesteps", "48"]
        assert train(*arguments, "--run-dir", "r") == 0
        assert {"mpe2", "pettingzoo", "pygame-ce"} <= set(content(in_tmp / "r")["versions"])

    def test_other_versions_and_commits_are_told(self, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
        versions = {**content(first)["versions"], "torch": "1.0", "jaxmarl": "0.0.1", "numpy": "1.0"}
        rewrite(first, versions=versions, git_commit="1234567")
        assert hmasd(*AGAIN, "--from", "first", "--run-dir", "second", "--total-timesteps", "48") == 0
        err = capsys.readouterr().err
        for name in ("torch 1.0, now 2", "numpy 1.0, now", "jaxmarl 0.0.1, now "):
            assert f"Warning: other versions than those of first, so results may differ: {name}" in err
        assert "Warning: another git commit than that of first, so results may differ: 1234567 then, none now." in err

    def test_uncommitted_changes_are_told(self, first: Path, in_tmp: Path) -> None:
        git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
        (in_tmp / "game.py").write_text("one")
        for arguments in (["init", "-q"], ["add", "game.py"], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *arguments], check=True)
        rewrite(first, git_commit=None)
        assert re.fullmatch(r"none then, [0-9a-f]{40} now", str(RunFolder(first).changed_commit()))
        commit = str(RunFolder(first).changed_commit()).split()[2]
        rewrite(first, git_commit=commit)
        assert RunFolder(first).changed_commit() is None
        (in_tmp / "game.py").write_text("two")
        assert RunFolder(first).changed_commit() == f"{commit} then, {commit}-dirty now"
