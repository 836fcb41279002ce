"""Files made to do harm: what they name is not run, not imported, and reaches no attribute that a good file does not."""

from __future__ import annotations

import base64
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch as th
from hostile import (
    legacy_tensors,
    parts_of,
    payloads,
    pickled,
    pickled_tensors,
    with_hyperparameters,
    write,
)
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from teams import make_model, parameters_of, random_team_vec_env, same

from hmasd_sb3 import HMASD
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.saving import ModelFileError, UntrustedFileError

ATTACKS = ("os.system", "builtins.exec", "builtins.eval", "pathlib")
TENSORS = ("policy.pth", "optimizers.pth", "training.pth")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model()
    model.learn(96)
    path = tmp_path_factory.mktemp("good") / "good.zip"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def good_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "policy.zip"
    make_model().policy.save(path)
    return path


# ------------------------------------------------------------------ pickles


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_work_where_pickles_are_loaded(tmp_path: Path, attack: str) -> None:
    marker = tmp_path / "marker"
    th.load(__import__("io").BytesIO(pickled_tensors(payloads(marker)[attack])), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("make", [pickled_tensors, legacy_tensors, pickled])
@pytest.mark.parametrize("part", TENSORS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_tensors_that_run_code_are_refused(
    tmp_path: Path, good: Path, attack: str, part: str, make: Callable[[Any], bytes]
) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path / "evil.zip", {**parts_of(good), part: make({"state": payloads(marker)[attack]})})
    for trust in (False, True):  # trust is about left_out.pkl and the old format, and opens nothing else
        with pytest.raises(ModelFileError, match=rf"evil.zip was refused: {part} holds something else than plain numbers"):
            HMASD.load(path, trust=trust)
    model = make_model()
    before = parameters_of(model)
    if part != "training.pth":
        with pytest.raises(ModelFileError, match="was refused"):
            model.set_parameters(path)
    assert same(parameters_of(model), before)
    assert not marker.exists()


def scripted_tensors() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        th.jit.save(th.jit.script(th.nn.Linear(1, 1)), stream)
    return stream.getvalue()


@pytest.mark.parametrize("content", [legacy_tensors({"state": 1}), scripted_tensors()], ids=["legacy", "TorchScript"])
def test_other_formats_of_torch_do_not_reach_it(
    tmp_path: Path, good: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some of its releases do not heed weights_only for them.
    path = write(tmp_path / "evil.zip", {**parts_of(good), "policy.pth": content})
    monkeypatch.setattr(th, "load", lambda *_, **__: pytest.fail("torch.load was reached"))
    with pytest.raises(ModelFileError, match=r"evil.zip was refused: policy.pth holds something else than plain numbers"):
        HMASD.load(path)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_left_out_is_opened_only_when_trusted(tmp_path: Path, good: Path, attack: str) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path / "evil.zip", {**parts_of(good), "left_out.pkl": pickled(payloads(marker)[attack])})
    HMASD.load(path, env=random_team_vec_env()).learn(48, reset_num_timesteps=False)
    make_model().set_parameters(path)
    assert not marker.exists()
    HMASD.load(path, trust=True)
    assert marker.exists()


def test_a_policy_alone_runs_no_code_either(tmp_path: Path, good_policy: Path) -> None:
    for number, (name, attack) in enumerate(payloads(tmp_path / "marker").items()):
        path = write(tmp_path / f"{number}.zip", {**parts_of(good_policy), "policy.pth": pickled_tensors({name: attack})})
        with pytest.raises(ModelFileError, match="cannot be loaded"):
            HMASDPolicy.load(path, "cpu")
        th.save({"state_dict": {}, "data": attack}, tmp_path / f"sb3-{number}.zip")
        with pytest.raises(UntrustedFileError, match=r"runs code.*trust=True"):
            HMASDPolicy.load(tmp_path / f"sb3-{number}.zip", "cpu")
    assert not (tmp_path / "marker").exists()


# ------------------------------------------------------------------ classes

NO_NETWORK = "neither a network nor an optimizer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": {"$class": "os:system"}}, NO_NETWORK),
        (
            {"policy_kwargs": {"optimizer_class": {"$class": "subprocess:Popen"}, "optimizer_kwargs": {"args": "x"}}},
            NO_NETWORK,
        ),
        ({"policy_kwargs": {"optimizer_class": {"$class": "builtins:eval"}}}, NO_NETWORK),
        ({"policy_kwargs": {"optimizer_class": {"$class": "torch:os.system"}}}, NO_NETWORK),
        ({"policy_kwargs": {"optimizer_class": {"$class": "torch.nn:Linear"}}}, "optimizer_class must be a subclass"),
        ({"policy_kwargs": {"features_extractor_class": {"$class": "torch.nn:Linear"}}}, "features_extractor_class must be"),
        ({"policy_kwargs": {"coordinator_class": {"$class": "torch.fx:GraphModule"}}}, "coordinator_class must be"),
        ({"policy_kwargs": {"optimizer_class": {"$class": "torch.optim:Adam.step"}}}, NO_NETWORK),
        ({"policy_kwargs": {"optimizer_class": {"$class": ["torch.optim:Adam"]}}}, "written wrongly"),
        ({"policy_kwargs": {"optimizer_class": {"$class": "antigravity:x"}}}, "may not import modules"),
        ({"policy_kwargs": {"optimizer_class": {"$class": "torch.utils.bottleneck.__main__:main"}}}, "may not import modules"),
        ({"policy_kwargs": {"optimizer_class": {"$class": "hmasd_sb3.demo:nothing"}}}, "may not import modules|not there"),
        ({"policy_kwargs": {"optimizer_class": {"$class": ".relative:x"}}}, "may not import modules"),
        ({"policy_kwargs": {"optimizer_class": {"$class": ""}}}, "may not import modules"),
        ({"policy_kwargs": {"run": 1}}, "policy_kwargs has no 'run'"),
        ({"policy_kwargs": [1]}, "policy_kwargs must be dict"),
        ({"plain": {"policy_class": "torch.nn:Linear"}}, "is no HMASDPolicy"),
        ({"plain": {"policy_class": "stable_baselines3.common.policies:ActorCriticPolicy"}}, "is no HMASDPolicy"),
        ({"plain": {"policy_class": "os:system"}}, NO_NETWORK),
        ({"plain": {"policy_class": None}}, "written wrongly"),
    ],
)
def test_classes_that_do_not_belong_there(tmp_path: Path, good: Path, changes: dict[str, Any], message: str) -> None:
    before = set(sys.modules)
    path = with_hyperparameters(tmp_path / "evil.zip", good, **changes)
    with pytest.raises(ModelFileError, match=f"evil.zip.*{message}"):
        HMASD.load(path, device="cpu")
    assert {"antigravity", "torch.utils.bottleneck.__main__"}.isdisjoint(set(sys.modules) - before)


def test_no_module_is_imported(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hmasd_sb3_evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = with_hyperparameters(
        tmp_path / "evil.zip", good, policy_kwargs={"optimizer_class": {"$class": "hmasd_sb3_evil:Evil"}}
    )
    with pytest.raises(ModelFileError, match="Import 'hmasd_sb3_evil' yourself before loading"):
        HMASD.load(path)
    assert not (tmp_path / "marker").exists()
    import hmasd_sb3_evil  # noqa: F401  (what would have happened)

    assert (tmp_path / "marker").exists()


# ------------------------------------------------------------------ values

BOX = {"type": "Box", "dtype": "float32", "low": 0.0, "high": 1.0}


def array(shape: list[Any], dtype: str = "<f4", **content: Any) -> dict[str, Any]:
    return {"$array": {"dtype": dtype, "shape": shape, **(content or {"fill": 0.0})}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": "0.9"}, "gamma must be a number"),
        ({"gamma": {"$float": "nan"}}, "gamma must be"),
        ({"gamma": 10**400}, "gamma must be finite"),
        ({"n_steps": 2.5}, "n_steps must be a whole number"),
        ({"n_steps": 10**18}, "array is too big"),
        ({"n_steps": None}, "n_steps must be a whole number"),
        ({"seed": "x"}, "seed must be"),
        ({"stats_window_size": "x"}, "stats_window_size must be"),
        ({"tensorboard_log": 3}, "tensorboard_log must be"),
        ({"on_nan": "run"}, "on_nan must be one of"),
        ({"ent_coef": {"$class": "torch.nn.modules.linear:Identity"}}, "ent_coef is the class Identity"),
        ({"learning_rate": {"$schedule": {"type": "Popen", "args": "x"}}}, "schedule 'Popen' is unknown"),
        ({"learning_rate": {"$schedule": {"type": "LinearSchedule", "start": "a", "end": 1, "end_fraction": 1}}}, "no number"),
        ({"learning_rate": {"$schedule": {"type": "ConstantSchedule", "val": 1, "__class__": 3}}}, "__class__"),
        ({"learning_rate": {"$schedule": {"type": "FloatSchedule", "value_schedule": "x"}}}, "no number"),
        ({"discriminator_noise": {"$schedule": {"type": "ConfusionGatedNoise", "level": "x"}}}, "no number"),
        ({"discriminator_noise": {"$schedule": {"type": "ConfusionGatedNoise", "observe": 1.0}}}, "has no 'observe'"),
        ({"learning_rate": {"$schedule": ["LinearSchedule"]}}, "written wrongly"),
        ({"learning_rate": {"$pickle": "gASV"}}, "unknown"),
        ({"learning_rate": {"$float": "1", "$class": "os:system"}}, "cannot stand together"),
        ({"learning_rate": {"$left_out": {"place": "x", "description": "d", "value": "x"}}}, "no number"),
        ({"save": 1}, r"with \['save'\], which HMASD here does not have"),
        ({"__class__": 1}, "does not have"),
        ({"policy_class": 1}, "does not have"),
        ({"plain": {"hyperparameters": [1]}}, "hyperparameters"),
        ({"plain": {"n_envs": -1}}, "n_envs must be a whole number of at least 1"),
        ({"plain": {"n_envs": "4"}}, "n_envs must be int"),
        ({"plain": {"observation_space": {"$space": {"type": "Text", "max_length": 3}}}}, "cannot be loaded"),
        ({"plain": {"observation_space": {"$space": {"type": "Dict", "spaces": [["obs", 3]]}}}}, "written wrongly"),
        ({"plain": {"observation_space": {"$space": BOX}}}, "cannot be loaded"),
        ({"plain": {"observation_space": 3}}, "cannot be loaded"),
        ({"plain": {"observation_space": {"$space": {**BOX, "low": array([10**9, 10**6])}}}}, "none that is ever written"),
        ({"plain": {"observation_space": {"$space": {**BOX, "low": array([-3])}}}}, "none that is ever written"),
        ({"plain": {"observation_space": {"$space": {**BOX, "low": array([3], "O")}}}}, "no array of numbers"),
        ({"plain": {"observation_space": {"$space": {**BOX, "low": array([2], base64="AAAA")}}}}, "written wrongly"),
        ({"plain": {"observation_space": {"$space": {**BOX, "low": array([2], base64="~")}}}}, "written wrongly"),
        (
            {"plain": {"action_space": {"$space": {"type": "Discrete", "n": 10**30, "start": 0, "dtype": "int64"}}}},
            "Discrete|wrong",
        ),
        (
            {"plain": {"action_space": {"$space": {"type": "MultiDiscrete", "dtype": "int64", "nvec": [-1], "start": [0]}}}},
            "wrong",
        ),
    ],
)
def test_values_that_do_not_belong_there(tmp_path: Path, good: Path, changes: dict[str, Any], message: str) -> None:
    path = with_hyperparameters(tmp_path / "evil.zip", good, **changes)
    with pytest.raises(ModelFileError, match=f"(?s)evil.zip.*({message})"):
        HMASD.load(path, device="cpu")


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"[" * 100_000, b"\xff", b'{"n_envs": ' + b"9" * 5000 + b"}"])
@pytest.mark.parametrize("part", ["hyperparameters.json", "manifest.json"])
def test_json_that_is_none(tmp_path: Path, good: Path, part: str, content: bytes) -> None:
    path = tmp_path / "evil.zip"
    if part == "manifest.json":
        with zipfile.ZipFile(path, "w") as archive:
            for name, own in {**parts_of(good), part: content}.items():
                archive.writestr(name, own)
    else:
        write(path, {**parts_of(good), part: content})
    with pytest.raises(ModelFileError, match=r"evil.zip"):
        HMASD.load(path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"format_version": 2}, "format version 2, this release reads versions up to 1.*upgrade"),
        ({"format_version": 2, "versions": {}}, "upgrade"),
        ({"format_version": "1"}, "damaged manifest"),
        ({"format_version": float("inf")}, "damaged manifest"),
        ({"versions": "1"}, "damaged manifest"),
        ({"kind": "policy"}, "holds a policy, not a model"),
        ({"kind": ["model"]}, "damaged manifest"),
        ({"format": "other"}, "not a model file of hmasd-sb3 but of 'other'"),
        ({"sha256": [["policy.pth", "0"]]}, "damaged manifest"),
        ({"sha256": {}}, "does not belong there"),
        ({"sha256": {"../../etc/passwd": "0"}}, "does not fit its checksum"),
    ],
)
def test_manifests(tmp_path: Path, good: Path, manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=f"evil.zip.*{message}"):
        HMASD.load(write(tmp_path / "evil.zip", parts_of(good), manifest))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_stand_twice_and_parts_that_are_packed(tmp_path: Path, good: Path) -> None:
    path = write(tmp_path / "twice.zip", parts_of(good))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("policy.pth", parts_of(good)["policy.pth"])
    with pytest.raises(ModelFileError, match=r"holds policy.pth more than once"):
        HMASD.load(path)
    path = write(tmp_path / "packed.zip", parts_of(good))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
    with pytest.raises(ModelFileError, match=r"zeros is compressed"):
        HMASD.load(path)


# ------------------------------------------------------------------ files of Stable-Baselines3


def as_sb3_saves(model: HMASD, path: Path) -> None:
    """What hmasd-sb3 0.1 wrote: the base class's file, of what a model had then."""
    later = ["on_nan", "max_rollbacks", "micro_batch_size", "after_update", "checkpoint_source", "_callback", "_schedules"]
    OnPolicyAlgorithm.save(model, path, exclude=[*later, "_rng", "_gate", "_inert_watch", "_critic_hidden", "run_id"])


def test_honest_files_of_an_earlier_release(tmp_path: Path) -> None:
    model = make_model()
    model.learn(96)
    as_sb3_saves(model, tmp_path / "old.zip")
    with pytest.raises(UntrustedFileError, match=r"old.zip is in Stable-Baselines3's own format.*trust=True"):
        HMASD.load(tmp_path / "old.zip")
    with pytest.raises(UntrustedFileError, match="trust=True"):
        make_model().set_parameters(tmp_path / "old.zip")
    loaded = HMASD.load(tmp_path / "old.zip", env=random_team_vec_env(), trust=True)
    assert same(parameters_of(loaded), parameters_of(model))
    assert loaded.num_timesteps == 96
    assert loaded.policy_version == 2
    loaded.learn(96, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192
    loaded.save(tmp_path / "new.zip")
    assert same(parameters_of(HMASD.load(tmp_path / "new.zip")), parameters_of(loaded))


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_files_of_an_earlier_release(tmp_path: Path, attack: str) -> None:
    marker = tmp_path / "marker"
    as_sb3_saves(make_model(), tmp_path / "old.zip")
    parts = parts_of(tmp_path / "old.zip")
    data = json.loads(parts["data"])
    serialized = base64.b64encode(cloudpickle.dumps(payloads(marker)[attack])).decode()
    data["ep_info_buffer"] = {":type:": "x", ":serialized:": serialized}
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name, content in {**parts, "data": json.dumps(data).encode()}.items():
            archive.writestr(name, content)
    for call in (HMASD.load, make_model().set_parameters, HMASDPolicy.load):
        with pytest.raises(ModelFileError):
            call(tmp_path / "evil.zip")
    assert not marker.exists()
    HMASD.load(tmp_path / "evil.zip", trust=True)
    assert marker.exists()
