"""Without the extra, or before its games are asked for, nothing of JAX is imported."""

import subprocess
import sys

import gymnasium as gym
import pytest

from hmasd_sb3 import make_team_vec_env
from hmasd_sb3.envs import JAXMARL_IDS, jaxmarl_games
from hmasd_sb3.wrappers.jaxmarl_vec import JaxMARLVectorEnv


def test_registration_imports_no_jax() -> None:
    code = (
        "import sys, gymnasium, hmasd_sb3, hmasd_sb3.wrappers.jaxmarl_vec;"
        "assert gymnasium.spec('SMAX-3m-v0').vector_entry_point;"
        "assert not {'jax', 'jaxlib', 'jaxmarl', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("missing", ["jax", "jaxmarl"])
@pytest.mark.parametrize("env_id", [env_id for env_id, kwargs in JAXMARL_IDS.items() if kwargs])
def test_a_missing_extra_is_named(env_id: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in {missing, "jaxmarl"}:
        for module in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    monkeypatch.setattr(jaxmarl_games, "_cached_game", jaxmarl_games._make_game)
    for make in (lambda: gym.make(env_id), lambda: make_team_vec_env(env_id, 2)):
        with pytest.raises(ImportError, match=r'pip install "hmasd-sb3\[jaxmarl\]"'):
            make()


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
