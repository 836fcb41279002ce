"""What a study leaves behind: settings to train with, tables, pictures, and a storage that others can read."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from commands import hmasd, wait_until
from postgres import free_port
from tuning import QUICK, SMALL_GAME, quick_options

from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.folder import RunFolder
from hmasd_sb3.tuning.plots import importances, plot_study
from hmasd_sb3.tuning.report import best_yaml, table, trials_csv, write_files
from hmasd_sb3.tuning.storage import open_storage
from hmasd_sb3.tuning.study import SharedStudy, Spec, open_study

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def finished_study(
    n_trials: int = 3, search: list[str] | None = None, storage: str = "s.journal", **kwargs: Any
) -> SharedStudy:
    """A study whose trials never trained: the value is the number of the trial over ten."""
    fixed = QUICK if search is None else {}
    settings: dict[str, Any] = {
        "aggregate": "mean",
        "normalize": False,
        "fixed": fixed,
        "search": search or ["gamma", "clip_range_vf", "batch_size"],
    }
    spec = Spec(
        "AliceAndBob-v0", 96, 4, "MlpPolicy", env_kwargs=SMALL_GAME, seeds=[0, 1], n_evaluations=2, n_eval_episodes=4,
        metric="auto", deterministic=False, **{**settings, **kwargs},
    )  # fmt: skip
    shared, _ = open_study(open_storage(storage), "s", spec, {"defaults": {}})
    shared.sign_in()
    for number in range(n_trials):
        trial = shared.next_trial(100, 100)
        assert isinstance(trial, optuna.Trial)
        trial.set_user_attr("hyperparameters", spec.search_space().sample(trial, 4))
        trial.set_user_attr("evaluations", {"steps": [48, 96], "by_seed": [[0.0, number / 10], [0.0, number / 10]]})
        shared.end(trial, number / 10)
    return shared


def test_the_best_trial_is_trained_by_the_command_as_it_stands() -> None:
    shared = finished_study(3, normalize=True)
    write_files(shared, Path("out"))
    text = Path("out/best.yml").read_text()
    assert text.startswith(
        "# Trial 2 of the study 's' in s.journal, the best of 3.\n# Value in the search 0.2; last evaluation"
    )
    assert hmasd("train", "--config", "out/best.yml", "--env", "AliceAndBob-v0", "--run-dir", "r", "--no-tensorboard") == 0
    config = RunFolder(Path("r")).read_config()
    assert (config.total_timesteps, config.n_envs, config.normalize) == (96, 4, True)
    assert config.env_kwargs == SMALL_GAME
    chosen = shared.trials()[2].user_attrs["hyperparameters"]
    assert config.hyperparameters == chosen


def test_every_argument_of_a_default_study_can_be_read_back() -> None:
    shared = finished_study(12, search=["skills", "batches", "ppo"])
    for number, trial in enumerate(shared.trials()):
        if trial.value is not None and number in (0, 5, 11):
            chosen = trial.user_attrs["hyperparameters"]
            written = yaml.safe_load(yaml.safe_dump(chosen))
            assert written == chosen
    assert yaml.safe_load(best_yaml(shared))["AliceAndBob-v0"]["n_steps"] == chosen["n_steps"]


def test_rl_zoo_takes_the_best_trial() -> None:
    programs = pytest.importorskip("hmasd_sb3.commands.zoo")
    pytest.importorskip("rl_zoo3")
    shared = finished_study(0)
    shared.enqueue({**QUICK, "clip_range_vf": None, "gamma": 0.95}, "None among the values")
    shared = finished_study(2)
    assert yaml.safe_load(best_yaml(shared))["AliceAndBob-v0"]["clip_range_vf"] is None
    write_files(shared, Path("out"))
    arguments = ["train", "--env", "AliceAndBob-v0", "-conf", "out/best.yml", "--eval-freq", "-1", "--seed", "3"]
    assert programs.run(arguments) == 0


def test_a_study_without_a_complete_trial() -> None:
    shared = finished_study(0)
    with pytest.raises(InputError, match="has no complete trial"):
        best_yaml(shared)
    assert [path.name for path in write_files(shared, Path("out"))] == ["trials.csv", "study.json"]
    assert json.loads(Path("out/study.json").read_text())["best"] is None
    assert table(shared) == []
    assert plot_study(shared, Path("out")) == []


def test_tables() -> None:
    shared = finished_study(3)
    rows = list(csv.DictReader(trials_csv(shared).splitlines()))
    assert [(row["number"], row["state"], row["value"]) for row in rows] == [
        ("0", "complete", "0.0"), ("1", "complete", "0.1"), ("2", "complete", "0.2")
    ]  # fmt: skip
    assert rows[0]["origin"] == "defaults"
    assert float(rows[0]["gamma"]) == 0.99
    lines = table(shared, 2)
    assert [line.split()[1] for line in lines] == ["2", "1"]
    content = write_files(shared, Path("out")) and json.loads(Path("out/study.json").read_text())
    assert content["best"]["number"] == 2
    assert content["settings"]["seeds"] == [0, 1]


class TestPictures:
    def test_they_are_drawn(self) -> None:
        shared = finished_study(8, search=["skills", "gamma", "clip_range"])
        trial = shared.next_trial(100, 100)
        assert isinstance(trial, optuna.Trial)
        shared.end(trial)
        drawn = plot_study(shared, Path("out"))
        assert [path.name for path in drawn] == ["history.png", "importances.png", "slices.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)

    @pytest.mark.parametrize("with_sklearn", [True, False])
    def test_what_matters_is_found(self, with_sklearn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        from hmasd_sb3.tuning import plots

        if with_sklearn:
            pytest.importorskip("sklearn")
        else:
            monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        rng = np.random.default_rng(0)
        for _ in range(40):
            trial = study.ask()
            value = trial.suggest_float("matters", 0, 1)
            trial.suggest_float("does_not", 0, 1)
            trial.suggest_int("n_envs", 4, 4)
            study.tell(trial, value + 0.01 * rng.normal())
        found = importances(study)
        assert list(found) == ["matters", "does_not"]
        assert sum(found.values()) == pytest.approx(1.0)
        assert found["matters"] > 0.7

    def test_there_may_be_nothing_to_explain(self) -> None:
        study = optuna.create_study(direction="maximize")
        assert importances(study) == {}
        study.optimize(lambda trial: 0.5 + 0 * trial.suggest_float("x", 0, 1), n_trials=3)
        assert importances(study) == {}


@pytest.mark.parametrize("storage", ["s.journal", "sqlite:///s.db"])
def test_the_dashboard_shows_the_study(storage: str) -> None:
    pytest.importorskip("optuna_dashboard")
    finished_study(2, storage=storage).place.leases.close()
    port = free_port()
    program = "from optuna_dashboard._cli import main; main()"
    arguments = ["--port", str(port), "--host", "127.0.0.1", "--server", "wsgiref", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, storage, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def fetch() -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                return json.loads(answer.read())
        except OSError:
            return None

    try:
        (study,) = wait_until(fetch, process)["study_summaries"]
    finally:
        process.kill()
        process.communicate()
    assert study["study_name"] == "s"


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    program = str(Path(__file__).parents[1] / "benchmarks/tuning.py")
    sizes = ["--trials=3", "--total-timesteps=19200", "--seeds=1", "--new-seeds=1", "--episodes=4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, program, "--storages=journal", "--out=out", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "3 complete, 1 killed" in done.stdout
    assert "| paper's setting |" in done.stdout


class TestPage:
    """docs/tuning.md says nothing that does not work."""

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", (DOCS / "tuning.md").read_text(), flags=re.DOTALL)

    def test_plain_optuna_in_ten_lines(self) -> None:
        code = self.blocks("python")[0]
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        small = {
            '"AliceAndBob-v0", 100_000': f'"AliceAndBob-v0", 1200, n_envs=2, n_evaluations=2, env_kwargs={SMALL_GAME}',
            "n_trials=24": "n_trials=1",
        }
        for text, replacement in small.items():
            assert text in code
            code = code.replace(text, replacement)
        names: dict[str, Any] = {}
        exec(compile(code, "docs/tuning.md", "exec"), names)
        assert names["study"].trials[0].state.name == "COMPLETE"

    def test_spaces(self) -> None:
        from hmasd_sb3.tuning.space import SearchSpace

        names: dict[str, Any] = {}
        exec(compile(self.blocks("python")[1], "docs/tuning.md", "exec"), names)
        assert isinstance(names["space"], SearchSpace)

    def test_every_option_is_one_of_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("tune", "--help") == 0
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        page = (DOCS / "tuning.md").read_text()
        commands = [line for line in page.splitlines() if line.strip().startswith("hmasd tune")]
        assert commands
        assert set(re.findall(r"--[a-z-]+", " ".join(commands))) <= known
        assert quick_options()
