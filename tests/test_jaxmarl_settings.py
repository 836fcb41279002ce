"""The shipped settings of JaxMARL's games make a model of them."""

from __future__ import annotations

import pytest
from test_zoo_settings import GAMES, make_model_of_entry

from hmasd_sb3 import envs

pytest.importorskip("jaxmarl")


@pytest.mark.parametrize("env_id", [env_id for env_id in GAMES if env_id in envs.JAXMARL_IDS])
def test_every_entry_makes_a_model(env_id: str) -> None:
    make_model_of_entry(env_id)
