"""Settings in RL Zoo's format: what is read, and how everything that is wrong is named before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import hmasd
from stable_baselines3.common.utils import LinearSchedule

from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.running.config import RunConfig, read_request
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.hyperparameters import NAMES, build_hyperparameters
from hmasd_sb3.running.options import TrainOptions

GOOD = """\
defaults: &defaults
  gamma: 0.9
  n_envs: 8
AliceAndBob-v0:
  <<: *defaults
  n_timesteps: !!float 1e5
  n_envs: 4
  policy: MlpPolicy
  normalize: "{'norm_obs': False, 'norm_reward': True}"
  env_kwargs:
    size: 5
  learning_rate: lin_1e-3
  ent_coef: 1e-2
  n_steps: 1e2
  target_kl: null
  skill_target_kl: None
  normalize_advantage: false
  policy_kwargs: "dict(hidden_size=16, value_norm=False)"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yml"


def read(file: Path, text: str, **options: Any) -> RunConfig:
    file.write_text(text, encoding="utf-8")
    return read_request(TrainOptions(config=file, **options)).config


def test_everything_the_zoo_writes_is_read(file: Path) -> None:
    config = read(file, GOOD)
    assert config == RunConfig(
        total_timesteps=100_000,
        n_envs=4,
        normalize={"norm_obs": False, "norm_reward": True},
        env_kwargs={"size": 5},
        hyperparameters={
            "gamma": 0.9,
            "learning_rate": "lin_1e-3",
            "ent_coef": 0.01,
            "n_steps": 100,
            "target_kl": None,
            "skill_target_kl": None,
            "normalize_advantage": False,
            "policy_kwargs": {"hidden_size": 16, "value_norm": False},
        },
    )
    built = build_hyperparameters(config.hyperparameters)
    assert isinstance(built["learning_rate"], LinearSchedule)
    assert (built["learning_rate"](1.0), built["learning_rate"](0.0)) == (1e-3, 0.0)
    assert isinstance(built["n_steps"], int)


def test_the_command_line_goes_before_the_file_and_the_file_before_defaults(file: Path) -> None:
    config = read(file, GOOD, n_envs=2, total_timesteps=7, assignments=["gamma=0.8", "env_kwargs={size: 6}"])
    assert (config.n_envs, config.total_timesteps, config.hyperparameters["gamma"]) == (2, 7, 0.8)
    assert config.env_kwargs == {"size": 6}
    assert config.eval_freq == RunConfig.eval_freq


def test_a_config_survives_json(file: Path) -> None:
    for text in (
        GOOD,
        "AliceAndBob-v0:\n  env_kwargs: dict(sizes=(1, 2))\n  policy_kwargs: dict(optimizer_kwargs=dict(betas=(0.9, 0.99)))",
    ):
        config = read(file, text)
        assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_every_argument_of_the_constructor_is_known() -> None:
    """A new hyperparameter needs no entry anywhere."""
    import inspect

    elsewhere = {"self", "policy", "env", "seed", "verbose", "tensorboard_log", "_init_setup_model"}
    assert set(NAMES) == set(inspect.signature(HMASD.__init__).parameters) - elsewhere


@pytest.mark.parametrize("name", NAMES)
def test_no_hyperparameter_takes_a_list(file: Path, name: str) -> None:
    """Whatever its type, a wrong one is noticed here, not in the middle of a training."""
    with pytest.raises(InputError, match=rf"settings.yml, line 2: {name}.*\[1, 2\]"):
        read(file, f"AliceAndBob-v0:\n  {name}: [1, 2]\n")


def test_schedules_between_two_values(file: Path) -> None:
    config = read(file, "AliceAndBob-v0: {learning_rate: lin_1e-3_5e-5, ent_coef: lin_0_0.1}")
    built = build_hyperparameters(config.hyperparameters)
    assert (built["learning_rate"].start, built["learning_rate"].end) == (1e-3, 5e-5)
    assert (built["ent_coef"](1.0), built["ent_coef"](0.0)) == (0.0, 0.1)


def test_the_entry_for_all_other_games(file: Path) -> None:
    text = "default: {gamma: 0.9}\nAliceAndBob-v0: {gamma: 0.8}\n"
    assert read(file, text).hyperparameters == {"gamma": 0.8}
    assert read(file, text, env="Own-v0").hyperparameters == {"gamma": 0.9}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["gama: 0.9"], r"line 2: there is no setting 'gama' \(value 0.9\). Did you mean 'gamma'\?"),
        (["n_envs: 4", "n_timestep: 10"], "line 3: there is no setting 'n_timestep' .* mean 'n_timesteps'"),
        (["gamma: high"], r"line 2: gamma must be a number in \[0, 1\], got 'high'"),
        (["gamma: 1.5"], r"line 2: gamma must be a number in \[0, 1\], got 1.5"),
        (["gamma: .nan"], "line 2: gamma must be finite, got nan"),
        (["n_steps: 2.5"], "line 2: n_steps must be a whole number, got 2.5"),
        (["n_steps: true"], "line 2: n_steps must be a whole number, got True"),
        (["n_steps:"], "line 2: n_steps must be a whole number, got None"),
        (["stats_window_size: ten"], "line 2: stats_window_size must be a whole number, got 'ten'"),
        (["normalize_advantage: 1"], "line 2: normalize_advantage must be true or false, got 1"),
        (["skill_at_rollout_end: drop"], "line 2: skill_at_rollout_end must be one of"),
        (["learning_rate: lin_fast"], "line 2: learning_rate must be a number or a schedule .* got 'lin_fast'"),
        (["learning_rate: lin_1e-3_slow"], "line 2: learning_rate must be a number or a schedule .* got 'lin_1e-3_slow'"),
        (["learning_rate: lin_1e-3_1e-4_3"], "line 2: learning_rate must be a number or a schedule .* got 'lin_1e-3_1e-4_3'"),
        (["learning_rate: lin_1e-3_"], "line 2: learning_rate must be a number or a schedule .* got 'lin_1e-3_'"),
        (["learning_rate: fast"], "line 2: learning_rate must be a number or a schedule such as 'lin_0.001' .* got 'fast'"),
        (["learning_rate: 1e-3_5"], "line 2: learning_rate must be a number or a schedule .* got '1e-3_5'"),
        (["gamma: 9e-1_0"], r"line 2: gamma must be a number in \[0, 1\], got '9e-1_0'"),
        (["n_steps: 1e1_2"], "line 2: n_steps must be a whole number, got '1e1_2'"),
        (["learning_rate: lin_1e-3_inf"], "line 2: learning_rate must be finite, got 'lin_1e-3_inf'"),
        (["learning_rate: lin_1e-3_-1e-4"], "line 2: learning_rate must not fall below 0, got 'lin_1e-3_-1e-4'"),
        (["learning_rate: lin_-1"], "line 2: learning_rate must be a number at least 0, got -1"),
        (["gamma: lin_0.9"], "line 2: gamma must be a number"),
        (["policy: MlpPolcy"], "line 2: Policy 'MlpPolcy' is unknown.*Did you mean 'MlpPolicy'"),
        (["policy: 3"], "line 2: policy must be one of .* got 3"),
        (["policy_kwargs: {hiden_size: 8}"], "line 2: policy_kwargs has no 'hiden_size'.*Did you mean 'hidden_size'"),
        (["policy_kwargs: 'dict(hidden_size=open(1))'"], "line 2: policy_kwargs must be a mapping, or a text"),
        (["policy_kwargs: {hidden_size: .inf}"], "line 2: policy_kwargs must be finite, got inf"),
        (["env_kwargs: 5"], "line 2: env_kwargs must be a mapping .* got 5"),
        (["env_kwargs: {day: 2026-01-01}"], "line 2: env_kwargs holds datetime.date"),
        (["env_kwargs: {1: 2}"], "line 2: env_kwargs must be a mapping of names"),
        (["normalize: perhaps"], "line 2: normalize must be true, false or the arguments of VecNormalize, got 'perhaps'"),
        (["n_envs: 0"], "line 2: n_envs must be a whole number of at least 1, got 0"),
        (["n_timesteps: -5"], "line 2: n_timesteps must be a whole number of at least 1, got -5"),
        (["batch_size: 7", "n_steps: 10"], "line 2: batch_size=7 does not divide"),
        (["seed: 3"], "line 2: seed is set by --seed"),
        (["device: gpu"], "line 2: device must be 'auto' or a device of torch"),
        (["device: 'cuda:99'"], "line 2: device='cuda:99' is not there"),
        (["gamma: 0.9", "gamma: 0.8"], "line 3: 'gamma' is given a second time"),
        (["gamma: [0.9"], "line 3: .*expected"),
        (["gamma: 0.9", " n_envs: 3"], r"line 3"),
        (["gamma: *nothing"], "line 2: found undefined alias"),
        (["env_kwargs: !!python/object/apply:os.system ['touch owned']"], "line 2: could not determine.*python.*refused"),
        (["env_kwargs: {a: !!python/name:os.system }"], "line 2: could not determine a constructor"),
        (["!!python/object/new:dict {}: 3"], "line 2: a name is expected"),
        (["[1, 2]: 3"], "line 2: a name is expected; got a list"),
        (["gamma: 2026-99-99"], "holds a value that is none"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    file: Path, lines: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(InputError, match=message) as caught:
        read(file, "AliceAndBob-v0:\n  " + "\n  ".join(lines) + "\n")
    assert "\n" not in str(caught.value)
    assert "settings.yml" in str(caught.value)
    assert [path.name for path in file.parent.iterdir()] == ["settings.yml"]  # nothing was run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file must hold environment ids.*got nothing"),
        ("- 1\n- 2\n", "line 1: the file must hold environment ids.*got a list"),
        ("AliceAndBob-v0: 3\n", "line 1: 'AliceAndBob-v0' must hold settings.*got the value '3'"),
        ("AliceAndBob-v0:\n", "must hold settings.*got the value ''"),
        ("A-v0: {gamma: 1}\nB-v0: {gamma: 1}\n", r"has entries for \['A-v0', 'B-v0'\]; choose one of them by --env"),
        ("a: {}\n---\nb: {}\n", "line 2: but found another document"),
        ("\tAliceAndBob-v0: {}\n", "line 1: found character"),
        ("AliceAndBob-v0: \x01\n", "is no YAML"),
        ("AliceAndBob-v0: " + "[" * 5000, "nested too deeply|line"),
    ],
)
def test_files_that_are_none(file: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(file, text)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_alike_is_not_proposed(file: Path) -> None:
    with pytest.raises(InputError, match=r"has no entry for 'AliceAndBob-v0'; it has \['Foo-v0', 'Bar-v0'\]\. Add one"):
        read(file, "Foo-v0: {gamma: 0.9}\nBar-v0: {}\n", env="AliceAndBob-v0")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yml: cannot be read: No such file"):
        read_request(TrainOptions(config=tmp_path / "nothing.yml"))
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_request(TrainOptions(config=tmp_path))
    (tmp_path / "latin.yml").write_bytes("Größe: 1".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.yml: is no text in UTF-8 \(byte 2\)"):
        read_request(TrainOptions(config=tmp_path / "latin.yml"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("gamma", "must have the form name=value"),
        ("=3", "must have the form name=value"),
        ("gama=3", "--set gama=3: there is no setting 'gama'.*Did you mean 'gamma'"),
        ("gamma=[", "--set gamma=.: .*expected"),
        ("gamma=!!python/name:os.system", "could not determine a constructor"),
        ("n_envs=4", "n_envs is set by --n-envs"),
    ],
)
def test_assignments_are_checked_alike(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_request(TrainOptions(assignments=[assignment]))


def test_a_wrong_file_ends_the_command_with_one_line_and_no_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    file.write_text("AliceAndBob-v0:\n  gama: 0.9\n")
    assert hmasd("train", "--config", "settings.yml") == 2
    out, err = capsys.readouterr()
    assert err == "Error: settings.yml, line 2: there is no setting 'gama' (value 0.9). Did you mean 'gamma'?\n"
    assert out == ""
    assert [path.name for path in file.parent.iterdir()] == ["settings.yml"]
