"""Values of unusual but legal types: a model made with them trains, is saved without noise, and comes back with them."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from teams import FAST, make_model, random_team_vec_env

from hmasd_sb3 import HMASD
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.saving.trees import tree_from_bytes, tree_to_bytes


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": np.int64(4)},
        {"stats_window_size": np.int64(7)},
        {"n_epochs": np.int32(1), "gamma": np.float64(0.9)},
        {"gae_lambda": np.float32(0.5)},
    ],
    ids=lambda arguments: "+".join(arguments),
)
def test_numbers_of_numpy(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = make_model(**arguments).learn(48)
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=random_team_vec_env()).learn(48, reset_num_timesteps=False)
    names = {"stats_window_size": "_stats_window_size"}
    assert {name: getattr(loaded, names.get(name, name)) for name in arguments} == arguments


def test_a_path_as_the_folder_of_the_log(tmp_path: Path) -> None:
    model = make_model(tensorboard_log=tmp_path / "log")
    model.save(tmp_path / "model")
    assert HMASD.load(tmp_path / "model").tensorboard_log == tmp_path / "log"


class Unstorable(BaseCallback):
    """Says what cannot be stored."""

    def _on_step(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"object": object()}


def test_what_cannot_be_stored_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hmasd_sb3"):
        make_model().learn(48 * 3, callback=[Unstorable(), TrainingCheckpoint(tmp_path, 48)])
    messages = [record.getMessage() for record in caplog.records if "new episodes" not in record.getMessage()]
    assert [message.startswith("A saved model lacks what") for message in messages] == [True]


def test_checkpoints_are_ordered_by_their_steps(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    names = ["checkpoint_500.zip", "checkpoint_000000001000.zip", "checkpoint_2000000000000.zip"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in folder.all()] == names
    assert [path.name for path in folder.newer_than(1000)] == names[2:]


def test_what_is_no_number_in_log_and_episodes_is_no_reason_not_to_save(tmp_path: Path) -> None:
    odd = {"text": np.str_("a"), "time": np.datetime64("2020"), "complex": np.complex64(1j), "long": np.longdouble(1)}
    model = make_model().learn(48)
    model.ep_info_buffer.append({"r": np.float32(1.5), "l": 3, **odd})
    for name, value in odd.items():
        model.logger.record(name, value)
    model.logger.record("number", np.float32(0.1))
    model.save(tmp_path / "model")
    loaded = HMASD.load(tmp_path / "model", env=random_team_vec_env())
    assert loaded.ep_info_buffer[-1] == {"r": np.float32(1.5), "l": 3}
    assert loaded._saved_run is not None
    pending = loaded._saved_run["logger"]["pending"]
    assert pending["number"][0] == np.float32(0.1)
    assert not set(odd) & set(pending)


def test_single_numbers_keep_their_types_and_are_small() -> None:
    # Evaluations leave three such numbers for each episode, so that a checkpoint may hold tens of thousands.
    numbers = [np.float32(0.1), np.float64(np.inf), np.float16(0.1), np.int32(-3), np.uint64(2**64 - 1), np.bool_(True)]
    back = tree_from_bytes(tree_to_bytes(numbers))
    assert [(type(number), number) for number in back] == [(type(number), number) for number in numbers]
    many = 1000
    assert len(tree_to_bytes(numbers * many)) < 40 * len(numbers) * many


@pytest.mark.parametrize("content", [("O", 1), ("<U3", 1), ("<f4", "x"), ("<i4", [1]), ("<f4", None), 3, ()])
def test_single_numbers_that_are_none(content: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        stream = io.BytesIO()
        th.save({"$scalar": content}, stream)
        tree_from_bytes(stream.getvalue())


def test_an_argument_that_a_subclass_keeps_under_another_name_is_named(tmp_path: Path) -> None:
    class Own(HMASD):
        def __init__(self, *args: Any, extra: int = 3, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._extra = extra

    model = Own("MlpPolicy", random_team_vec_env(), **FAST)
    with pytest.raises(ValueError, match=r"Own takes the argument 'extra' and has no attribute.*Keep it as self.extra"):
        model.save(tmp_path / "model")


def test_what_scripts_that_only_play_put_in_place_of_pickled_schedules(tmp_path: Path) -> None:
    make_model(clip_range=0.3).save(tmp_path / "model")
    stand_ins = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    assert HMASD.load(tmp_path / "model", custom_objects=stand_ins).clip_range == 0.3
    assert HMASD.load(tmp_path / "model", custom_objects={"clip_range": 0.1}).clip_range == 0.1
    with pytest.raises(ValueError, match="clip_range must be a number above 0"):
        HMASD.load(tmp_path / "model", clip_range=0.0)
