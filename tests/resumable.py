"""Small trainings of many kinds that can be cut into pieces, each in a process of its own, and digests to compare them by."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from teams import FAST, RandomTeam

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.wrappers import generator_state, restored_generator


class ResumableTeam(RandomTeam):
    """:class:`RandomTeam`, which can tell how it goes on."""

    def state_dict(self) -> dict[str, Any]:
        mask = getattr(self, "mask", None)
        return {"generator": generator_state(self._np_random), "present": self.present.copy(), "mask": mask}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._np_random = restored_generator(state["generator"])
        self.present = state["present"]
        if state["mask"] is not None:
            self.mask = state["mask"]


KINDS: dict[str, dict[str, Any]] = {
    "discrete": {"env": {"kind": "discrete"}},
    "continuous": {"env": {"kind": "continuous"}},
    "masked": {"env": {"kind": "masked"}},
    "agents that come and go": {"env": {"kind": "discrete", "p_leave": 0.2}},
    "normalized": {"env": {"kind": "continuous"}, "normalize": True},
    "workers": {"env": {"kind": "masked"}, "make": {"n_workers": 2}},
    "workers that restart": {"env": {"kind": "masked"}, "make": {"n_workers": 2, "restart_workers": True}},
    "accumulated": {"env": {"kind": "discrete"}, "model": {"micro_batch_size": 5}},
    "dynamic batch size": {"env": {"kind": "discrete"}, "model": {"batch_size": "schedule"}},
    "new skills in each rollout": {"env": {"kind": "discrete"}, "model": {"skill_at_rollout_end": "reassign"}},
    "Alice and Bob": {"game": "AliceAndBob-v0"},
    "Alice and Bob, one by one": {"game": "AliceAndBob-v0", "make": {"n_workers": 2}},
}


def is_clocked(name: str) -> bool:
    """Whether a logged value depends on how fast the machine was."""
    return name.endswith("_time") or name in ("time/fps", "time/time_elapsed")


class Recorded(KVWriter):
    """Keeps what is logged, apart from what a clock decides."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        values = {k: float(v) for k, v in key_values.items() if not is_clocked(k)}
        self.lines.append((step, values))

    def close(self) -> None:
        pass


def make_env(kind: str, seed: int = 0, n_envs: int = 4) -> VecEnv:
    """The environments of a kind, wrapped as it says."""
    how = KINDS[kind]
    env: VecEnv
    make = dict(how.get("make", {}))
    if "n_workers" in make:
        make["vec_env_kwargs"] = {"start_method": "fork"}
    game = how.get("game", ResumableTeam)
    if how.get("normalize"):
        # Watched from outside: this monitor counts in single precision, which a file must not widen.
        env = VecMonitor(DummyVecEnv([lambda: ResumableTeam(**how["env"]) for _ in range(n_envs)]))
        env.seed(seed)
        return VecNormalize(env, norm_obs_keys=["obs", "state"])
    return make_team_vec_env(game, n_envs, seed=seed, env_kwargs=how.get("env", {}), **make)


def make_run(kind: str, env: VecEnv) -> HMASD:
    """A fresh model of a kind."""
    settings = {**FAST, **KINDS[kind].get("model", {})}
    if settings.get("batch_size") == "schedule":
        from stable_baselines3.common.utils import LinearSchedule

        settings["batch_size"] = LinearSchedule(12, 48, 1.0)
    return HMASD("MlpPolicy", env, **settings)


def with_log(model: HMASD) -> Recorded:
    """Let a model log into memory."""
    recorded = Recorded()
    model.set_logger(Logger(None, [recorded]))
    return recorded


def evaluation(kind: str) -> EvalCallback:
    """An evaluation every 9 calls, on environments with episodes of their own."""
    env = make_env("masked" if kind.startswith("workers") else kind, seed=100, n_envs=2)
    log = tempfile.mkdtemp(prefix="hmasd-evaluations-")  # without a log it would keep no history
    atexit.register(shutil.rmtree, log, ignore_errors=True)
    return EvalCallback(env, n_eval_episodes=3, eval_freq=9, deterministic=False, verbose=0, log_path=log)


def fingerprint(*values: Any) -> str:
    """Hash of nested values with arrays, exact to the last bit."""
    parts = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                parts.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)
        elif isinstance(value, th.Tensor):
            parts.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, np.ndarray):
            parts.update(np.ascontiguousarray(value).tobytes())
        else:
            parts.update(repr(value).encode())

    add(values)
    return parts.hexdigest()


def digest(model: HMASD) -> str:
    """Fingerprint of weights, optimizers, normalisers, generators, skills and counters."""
    normalizer, statistics = model.get_vec_normalize_env(), []
    if normalizer is not None:
        statistics = [[rms.mean, rms.var, rms.count] for _, rms in sorted(normalizer.obs_rms.items())]
        statistics.append([np.asarray(normalizer.ret_rms.mean), np.asarray(normalizer.ret_rms.var)])
    return fingerprint(
        model.get_parameters(),
        [th.get_rng_state(), model._rng.bit_generator.state, model.num_timesteps],
        [model.policy_version, model._n_updates, model._n_iterations, model._current_progress_remaining],
        [*model.skill_state, model._critic_hidden, model._last_obs],
        [dict(info, t=0) for info in model.ep_info_buffer],
        statistics,
    )


def outcome(model: HMASD, recorded: Recorded, callback: BaseCallback) -> dict[str, Any]:
    """What two runs are compared by, as JSON takes it."""
    evaluated = [callback.evaluations_timesteps, callback.evaluations_results, callback.evaluations_length]
    return json.loads(
        json.dumps(
            {
                "digest": digest(model),
                "log": recorded.lines,
                "evaluations": [[np.asarray(one).tolist() for one in each] for each in evaluated],
                "best": float(callback.best_mean_reward),
            }
        )
    )


def in_new_process(*arguments: str) -> Any:
    """Run this module's :func:`main` in a fresh interpreter."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def main(kind: str, path: str, steps: str) -> None:
    """Load, go on for some steps, and print the outcome."""
    th.set_num_threads(1)
    np.random.seed(99)  # whatever else the new process did with the generators before
    th.manual_seed(99)
    env = make_env(kind, seed=7)
    model = HMASD.load(path, env=env, device="cpu")
    recorded, callback = with_log(model), evaluation(kind)
    model.learn(int(steps), callback=callback, reset_num_timesteps=False)
    print(json.dumps(outcome(model, recorded, callback)))
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
