"""The command ``hmasd envs``: what is registered, asked of the environments themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import hmasd

from hmasd_sb3.envs import JAXMARL_IDS
from hmasd_sb3.running import env_list
from hmasd_sb3.running.env_list import list_environments
from hmasd_sb3.running.shipped import shipped_ids


def listed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert hmasd("envs", *arguments, "--json") == 0
    return {entry["env"]: entry for entry in json.loads(capsys.readouterr().out)["envs"]}


def test_sizes_are_those_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = listed("alice", capsys=capsys).values()
    assert entry == {
        "env": "AliceAndBob-v0",
        "source": "this package",
        "agents": 2,
        "obs": [66],
        "state": [130],
        "actions": "4",
        "masks": [],
        "time_limit": 100,
        "missing": None,
        "problem": None,
        "settings": entry["settings"],
    }


def test_everything_that_can_be_named_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    entries = listed("--quick", capsys=capsys)
    assert {"AliceAndBob-v0", *JAXMARL_IDS, "SimpleSpread-v0", "butterfly/pistonball-v6"} <= set(entries)
    assert all(entry["agents"] is None for entry in entries.values())


def test_games_of_other_packages(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mpe2")
    (entry,) = listed("SimpleSpread", capsys=capsys).values()
    assert (entry["agents"], entry["obs"], entry["actions"], entry["time_limit"]) == (3, [18], "5", 25)
    assert entry["masks"] == ["agent_mask"]
    (entry,) = listed("pistonball", capsys=capsys).values()
    assert (entry["agents"], entry["actions"], entry["state"]) == (20, "1 continuous", [560, 880, 3])


def test_what_is_missing_comes_with_its_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_list, "is_there", lambda module: False)
    entries = listed("--quick", capsys=capsys)
    assert entries["SMAX-3m-v0"]["missing"] == 'pip install "hmasd-sb3[jaxmarl]"'
    assert entries["SimpleSpread-v0"]["missing"] == 'pip install "hmasd-sb3[mpe]"'
    assert entries["AliceAndBob-v0"]["missing"] is None

    def absent(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'Box2D'", name="Box2D")

    monkeypatch.setattr(env_list, "make_team_vec_env", absent)
    (entry,) = listed("multiwalker", capsys=capsys).values()
    assert (entry["missing"], entry["problem"]) == ('pip install "pettingzoo[sisl]"', "No module named 'Box2D'")


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd("envs", "AliceAndBob") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["environment", "agents", "obs", "state", "actions", "limit", "settings"]
    assert lines[1].split()[:6] == ["AliceAndBob-v0", "2", "66", "130", "4", "100"]


def test_recommended_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the file that comes with the package, whose environment arguments count for the sizes too."""
    file = tmp_path / "hmasd.yml"
    file.write_text("AliceAndBob-v0:\n  n_envs: 16\n  env_kwargs: {max_steps: 33}\nodd_games:OddTeam:\n  gamma: 0.9\n")
    monkeypatch.setattr(env_list, "shipped_file", lambda: file)
    monkeypatch.setattr(env_list, "shipped_ids", lambda: ("AliceAndBob-v0", "odd_games:OddTeam"))
    entry = list_environments("AliceAndBob-v0")[0]
    assert entry.settings == {"n_envs": 16, "env_kwargs": {"max_steps": 33}}
    assert entry.time_limit == 33
    (entry,) = list_environments("odd_games")
    assert (entry.agents, entry.settings) == (2, {"gamma": 0.9})
    assert hmasd("envs", "AliceAndBob-v0") == 0
    assert "\nAliceAndBob-v0:\n  n_envs: 16\n  env_kwargs: {'max_steps': 33}\n" in capsys.readouterr().out


def test_every_game_with_settings_is_listed() -> None:
    entries = {entry.env: entry.settings for entry in list_environments(with_sizes=False)}
    assert {env for env, settings in entries.items() if settings} == set(shipped_ids())


def test_no_such_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert hmasd("envs", "nothing") == 2
    assert "'nothing' is in the name of none of the" in capsys.readouterr().err
