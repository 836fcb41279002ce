"""The shipped settings, and what is refused in settings for RL Zoo before anything starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from commands import SMALL as SMALL_RUN
from commands import files_below, hmasd
from zoo_runs import SMALL, zoo

from hmasd_sb3 import HMASD, envs, make_team_vec_env
from hmasd_sb3.running import config as config_module
from hmasd_sb3.running.config import RunConfig, read_request
from hmasd_sb3.running.hyperparameters import build_hyperparameters, default_of
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.zoo import shipped_file, shipped_ids

GAMES = [env_id for env_id in (envs.ALICE_AND_BOB_ID, envs.SIMPLE_SPREAD_ID, *envs.JAXMARL_IDS) if env_id != "JaxMARL-v0"]
"""All that are registered, but for the id that stands for any game of JaxMARL's."""


def plain(value: Any) -> Any:
    """Comparable: schedules have no equality of their own."""
    return repr(value)


def make_model_of_entry(env_id: str) -> None:
    """Make the model that a shipped entry describes, and see that it has all of the entry's values."""
    config = read_request(TrainOptions(env=env_id)).config
    assert config.total_timesteps >= 100_000
    env = make_team_vec_env(env_id, 2, env_kwargs=config.env_kwargs)
    model = HMASD(config.policy, env, **build_hyperparameters(config.hyperparameters), device="cpu")
    for name, value in build_hyperparameters(config.hyperparameters).items():
        assert plain(getattr(model, name)) == plain(value)
    env.close()


class TestShippedFile:
    def test_every_registered_game_has_an_entry(self) -> None:
        ours = [env_id for env_id, spec in gym.registry.items() if "hmasd_sb3" in str(spec.entry_point)]
        assert set(GAMES) == set(ours) - {"JaxMARL-v0"}
        assert set(shipped_ids()) == set(GAMES)

    def test_every_entry_says_where_its_values_come_from(self) -> None:
        lines = shipped_file().read_text().splitlines()
        for env_id in shipped_ids():
            place = next(number for number, line in enumerate(lines) if line.startswith(f"{env_id}:"))
            above = []
            while lines[place - 1].startswith("#"):
                place -= 1
                above.append(lines[place])
            assert any(word in " ".join(above) for word in ("MEASURED", "UNTESTED")), env_id

    @pytest.mark.parametrize("env_id", [env_id for env_id in GAMES if env_id not in envs.JAXMARL_IDS])
    def test_every_entry_makes_a_model(self, env_id: str) -> None:
        make_model_of_entry(env_id)

    @pytest.mark.parametrize("env_id", GAMES)
    def test_every_entry_passes_the_checks(self, env_id: str) -> None:
        request = read_request(TrainOptions(env=env_id))
        assert request.given == {"env": env_id}
        assert request.hyperparameters == {}
        assert str(shipped_file()) in request.note

    def test_the_entry_of_alice_and_bob_is_the_defaults(self) -> None:
        config = read_request(TrainOptions()).config
        built = build_hyperparameters(config.hyperparameters)
        assert len(built) > 25
        for name, value in built.items():
            assert plain(value) == plain(default_of(name)), name
        assert config == RunConfig(hyperparameters=config.hyperparameters, shipped=config.shipped)

    def test_other_games_get_no_settings(self) -> None:
        request = read_request(TrainOptions(env="CartPole-v1"))
        assert request.config == RunConfig(env="CartPole-v1")
        assert request.note == ""

    def test_the_default_entry_is_what_hmasd_train_does(self, tmp_path: Path) -> None:
        file = tmp_path / "settings.yml"
        file.write_text(shipped_file().read_text())
        config = read_request(TrainOptions(env="Own-v0", config=file)).config
        assert config == RunConfig(env="Own-v0")

    def test_order_of_what_counts(self, tmp_path: Path) -> None:
        options = TrainOptions(total_timesteps=7, n_envs=3, assignments=["gamma=0.5", "policy_kwargs={hidden_size: 8}"])
        request = read_request(options)
        assert (request.config.total_timesteps, request.config.n_envs, request.config.hyperparameters["gamma"]) == (7, 3, 0.5)
        assert request.config.hyperparameters["n_epochs"] == 5
        assert not {"total_timesteps", "n_envs", "gamma"} & set(request.config.shipped)
        assert {"n_epochs", "policy"} <= set(request.config.shipped)
        (tmp_path / "own.yml").write_text("AliceAndBob-v0: {gamma: 0.6}")
        config = read_request(TrainOptions(config=tmp_path / "own.yml")).config
        assert (config.hyperparameters, config.shipped) == ({"gamma": 0.6}, [])


class TestChangedShippedFile:
    """A newer release may ship other values; a run goes on with its own."""

    @pytest.fixture
    def begun(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        self.ship(tmp_path, monkeypatch, "{gamma: 0.9, n_timesteps: 96}")
        assert hmasd("train", *SMALL_RUN) == 0
        (run,) = (tmp_path / "runs").iterdir()
        (run / "model.zip").unlink()  # as if it had broken off before its end
        self.ship(tmp_path, monkeypatch, "{gamma: 0.8, vf_coef: 0.7, n_timesteps: 144}")
        return run

    @staticmethod
    def ship(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
        (folder / "shipped.yml").write_text(f"AliceAndBob-v0: {entry}")
        monkeypatch.setattr(config_module, "shipped_file", lambda: folder / "shipped.yml")

    @pytest.mark.parametrize("resume", ["auto", "{run}"])
    def test_does_not_contradict_a_run(self, begun: Path, resume: str) -> None:
        assert hmasd("train", *SMALL_RUN, "--resume", resume.format(run=begun)) == 0
        assert len(list(begun.parent.iterdir())) == 1
        run = json.loads((begun / "config.json").read_text())["run"]
        assert (run["total_timesteps"], run["hyperparameters"]["gamma"]) == (96, 0.9)
        assert (begun / "model.zip").exists()

    def test_what_was_typed_still_counts(self, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert hmasd("train", *SMALL_RUN, "--resume", str(begun), "--set", "gamma=0.8") == 2
        assert "gamma=0.8 was given, but the run" in capsys.readouterr().err
        assert hmasd("train", *SMALL_RUN, "--resume", "auto", "--set", "vf_coef=0.7") == 0  # another run, then
        assert len(list(begun.parent.iterdir())) == 2


def test_simple_spread_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpe2", None)
    with pytest.raises(ImportError, match=r'needs the package "mpe2".*pip install "hmasd-sb3\[mpe\]"'):
        gym.make("SimpleSpread-v0")


@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper", "frame_stack", "callback", "monitor_kwargs"])
def test_hmasd_train_refuses_what_only_rl_zoo_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    file = tmp_path / "settings.yml"
    file.write_text(f"AliceAndBob-v0:\n  gamma: 0.9\n  {key}: some.place\n")
    assert hmasd("train", "--config", str(file)) == 2
    err = capsys.readouterr().err
    assert f"line 3: {key} works with RL Zoo alone (hmasd zoo train): in hmasd train " in err


class TestBrokenSettings:
    @pytest.fixture(autouse=True)
    def in_tmp(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        pytest.importorskip("rl_zoo3")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        before = files_below(Path())
        assert zoo("train", "--env", "AliceAndBob-v0", *arguments) == 2
        assert files_below(Path()) == before
        out, err = capsys.readouterr()
        assert "hyperparameters" not in out  # nothing was read on from what is wrong
        assert err.count("\n") == 1
        return err

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("gama: 0.9", "line 3: there is no setting 'gama' (value 0.9). Did you mean 'gamma'?"),
            ("n_timestep: 9", "line 3: there is no setting 'n_timestep' (value 9). Did you mean 'n_timesteps'?"),
            ("env_wraper: a.B", "line 3: there is no setting 'env_wraper' (value 'a.B'). Did you mean 'env_wrapper'?"),
            ("gamma: high", "line 3: gamma must be a number in [0, 1], got 'high'"),
            ("n_steps: 2.5", "line 3: n_steps must be a whole number, got 2.5"),
            ("policy: MlpPolcy", "line 3: Policy 'MlpPolcy' is unknown; HMASD has"),
            ("policy: gymnasium.Env", "line 3: policy must be 'MlpPolicy' or a subclass of HMASDPolicy"),
            ("policy_kwargs: {hiden_size: 8}", "line 3: policy_kwargs has no 'hiden_size'"),
            ("ent_coef: lin_fast", "line 3: ent_coef must be a number or a schedule"),
            ("ent_coef: lin_0.1_-1", "line 3: ent_coef must not fall below 0, got 'lin_0.1_-1'"),
            ("batch_size: 7", "line 3: batch_size=7 does not divide"),
            ("frame_stack: two", "line 3: frame_stack must be a whole number of at least 1, got 'two'"),
            ("callback: nowhere.Callback", "line 3: callback='nowhere.Callback': cannot import 'nowhere'"),
            ("env_wrapper: gymnasium.wrappers.TimeLimt", "has no 'TimeLimt'. Did you mean 'TimeLimit'?"),
            ("env_wrapper: 3", "line 3: env_wrapper must be the place of a class"),
            ("env_wrapper: [{a.B: 1, b: 2}]", "line 3: env_wrapper: an entry with arguments must have the form"),
            ("monitor_kwargs: 5", "line 3: monitor_kwargs must be a mapping"),
            ("seed: 4", "line 3: seed is set by --seed"),
            ("tensorboard_log: tb", "line 3: tensorboard_log is set by --tensorboard-log"),
            ("gamma: *nothing", "line 3: found undefined alias"),
            ("env_kwargs: !!python/name:os.system ", "line 3: could not determine a constructor"),
        ],
    )
    def test_in_a_file(self, in_tmp: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
        (in_tmp / "own.yml").write_text(f"AliceAndBob-v0:\n  n_envs: 4\n  {line}\n")
        err = self.refused(capsys, "-conf", "own.yml")
        assert err.startswith("Error: own.yml, line 3: ")
        assert message in err

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("gama:0.9", "--hyperparams gama: there is no setting 'gama' (value 0.9). Did you mean 'gamma'?"),
            ("gamma:'high'", "--hyperparams gamma: gamma must be a number in [0, 1], got 'high'"),
            ("learning_rate:lambda _: -1.0", "--hyperparams learning_rate: learning_rate must be a number at least 0"),
            ("gamma:float('nan')", "--hyperparams gamma: gamma must be finite"),
        ],
    )
    def test_on_the_command_line(self, capsys: pytest.CaptureFixture[str], argument: str, message: str) -> None:
        assert message in self.refused(capsys, "--hyperparams", argument)

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("env_kwargs:{'siz':3}", "unexpected keyword argument 'siz'"),
            ("normalize:{'norm_ob':True}", "unexpected keyword argument 'norm_ob'"),
        ],
    )
    def test_what_only_the_game_can_refuse(
        self, in_tmp: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
    ) -> None:
        assert zoo("train", "--env", "AliceAndBob-v0", "--hyperparams", argument) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        assert not [path for path in in_tmp.rglob("*") if path.is_file()]
        assert not list(in_tmp.glob("logs/hmasd/*"))

    def test_masks_cannot_be_stacked(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("mpe2")
        assert zoo("train", "--env", "SimpleSpread-v0", "--hyperparams", "frame_stack:2", "n_envs:1") == 2
        assert "frame_stack=2: masks among the observations cannot be stacked" in capsys.readouterr().err

    def test_files_that_are_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--conf-file nothing.yml: cannot be read" in self.refused(capsys, "--conf-file", "nothing.yml")
        assert "--conf-file nothing.py: there is no such file" in self.refused(capsys, "--conf-file", "nothing.py")

    def test_a_python_file(self, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (in_tmp / "own.py").write_text("hyperparams = {'AliceAndBob-v0': {'gama': 0.9}}")
        assert zoo("train", "--env", "AliceAndBob-v0", "-conf", "own.py") == 2  # read, that is run, by RL Zoo itself
        assert "own.py: there is no setting 'gama'" in capsys.readouterr().err
        assert not (in_tmp / "logs").exists()
        entry = "dict(n_timesteps=48, n_envs=2, n_steps=24, n_epochs=1, skill_n_epochs=1, ent_coef=lambda left: 0.01 * left)"
        (in_tmp / "own.py").write_text(f"hyperparams = {{'AliceAndBob-v0': {entry}}}")
        assert zoo("train", "--env", "AliceAndBob-v0", "-conf", "own.py", "--eval-freq", "-1") == 0

    def test_an_unknown_game_or_program(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert zoo("train", "--env", "AliceAndBo-v0") == 2
        assert "you maybe meant AliceAndBob-v0" in capsys.readouterr().err
        assert zoo("trian") == 2
        assert "There is no program 'trian'; there are train, enjoy" in capsys.readouterr().err


def test_counts_left_out_are_those_of_hmasd_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RL Zoo would take one environment, and cannot do without n_timesteps."""
    pytest.importorskip("rl_zoo3")
    from hmasd_sb3.running.yaml_file import Given
    from hmasd_sb3.zoo.settings import check_settings

    values = check_settings({"gamma": Given("9e-1", "here")})
    assert values == {"n_timesteps": 320_000, "n_envs": 32, "policy": "MlpPolicy", "gamma": 0.9}
    assert "learning_rate" in SMALL


class TestCommand:
    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("rl_zoo3")
        for arguments in ([], ["--help"]):
            assert hmasd("zoo", *arguments) == 0
            out = capsys.readouterr().out
            for program in ("train", "enjoy", "record-video", "record-training", "plot-train", "all-plots", "plot-from-file"):
                assert f"  {program} " in out
        assert hmasd("zoo", "train", "--help") == 0
        assert "--optimize-hyperparameters" in capsys.readouterr().out
        assert hmasd("--help") == 0
        assert "  zoo " in capsys.readouterr().out

    def test_options_reach_the_program_unchanged(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("rl_zoo3")
        assert hmasd("zoo", "train", "--env", "AliceAndBob-v0", "-conf", "nothing.yml", "-P", "-params", "gamma:0.9") == 2
        assert "--conf-file nothing.yml" in capsys.readouterr().err
        assert hmasd("zoo", "train", "--no-such-option") == 2
        assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err
