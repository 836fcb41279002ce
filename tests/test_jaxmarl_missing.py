"""Without the extra, or before its games are asked for, nothing of JAX is imported."""

import subprocess
import sys

import pytest

from hmasd_sb3.envs import jaxmarl_games
from hmasd_sb3.wrappers.jaxmarl_vec import JaxMARLVectorEnv


def test_registration_imports_no_jax() -> None:
    code = (
        "import sys, gymnasium, hmasd_sb3, hmasd_sb3.wrappers.jaxmarl_vec;"
        "assert gymnasium.spec('SMAX-3m-v0').vector_entry_point;"
        "assert not {'jax', 'jaxlib', 'jaxmarl', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("missing", ["jax", "jaxmarl"])
def test_a_missing_extra_is_named(missing: str) -> None:
    # In a process of its own, as half-imported packages would stay behind in this one.
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import gymnasium as gym
from hmasd_sb3 import make_team_vec_env
from hmasd_sb3.envs import JAXMARL_IDS
for env_id in (env_id for env_id, kwargs in JAXMARL_IDS.items() if kwargs):
    for make in (lambda: gym.make(env_id), lambda: make_team_vec_env(env_id, 2)):
        try:
            make()
        except ImportError as error:
            assert 'pip install "hmasd-sb3[jaxmarl]"' in str(error), error
        else:
            raise AssertionError(env_id)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_broken_packages_are_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'ml_dtypes'", name="ml_dtypes")

    monkeypatch.setattr(jaxmarl_games.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="ml_dtypes"):
        jaxmarl_games.import_extra("jax")


def test_games_that_are_no_team_are_refused_without_the_extra_too() -> None:
    with pytest.raises(ValueError, match="cannot be played as one team yet"):
        JaxMARLVectorEnv("hanabi")
    with pytest.raises(TypeError, match="a JaxMARL name or a JaxMARLGame"):
        JaxMARLVectorEnv(3)  # type: ignore[arg-type]


def test_importing_leaves_the_output_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, my_errors = sys.stdout, sys.stderr

    def as_jaxmarl_does(name: str) -> None:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__

    monkeypatch.setattr(jaxmarl_games.importlib, "import_module", as_jaxmarl_does)
    assert mine is not sys.__stdout__
    jaxmarl_games.import_extra("jaxmarl")
    assert (sys.stdout, sys.stderr) == (mine, my_errors)
