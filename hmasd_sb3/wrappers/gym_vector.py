"""A Gymnasium vector environment over teams, spoken to as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from hmasd_sb3.envs.plain_state import checked_entries
from hmasd_sb3.wrappers.layer_states import collect_layers, restore_layers
from hmasd_sb3.wrappers.reset_orders import checked_reset_orders, reset_orders, set_reset_orders
from hmasd_sb3.wrappers.team_spaces import check_team_spaces


class GymVectorTeamVecEnv(VecEnv):
    """One row per team of a ``gymnasium.vector.VectorEnv`` that restarts finished rows within the same step.

    What SB3 expects of a finished row is taken from where Gymnasium puts it:

    - ``infos[i]`` is the last step's own info, so ``is_success`` and the like are at its top level;
    - ``infos[i]["terminal_observation"]`` is the observation before the restart;
    - ``infos[i]["TimeLimit.truncated"]`` is True if the row was truncated and not terminated;
    - the info of the restart is in ``reset_infos[i]``.

    A vector environment need not hold single environments, so attributes are those of the whole: see `get_attr`.

    :param vector_env: its ``single_observation_space`` and ``single_action_space`` must be a team's
    :raises TypeError: if it is no ``VectorEnv``
    :raises ValueError: if its rows are no teams, or it restarts rows in another way
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(vector_env, VectorEnv):
            raise TypeError(f"a gymnasium.vector.VectorEnv is needed; got {type(vector_env).__name__}")
        check_team_spaces(vector_env.single_observation_space, vector_env.single_action_space)
        mode = vector_env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"finished rows must be restarted within the same step (AutoresetMode.SAME_STEP), but {vector_env} "
                f"says autoreset_mode={mode}. Make it with that mode, e.g. "
                "SyncVectorEnv(..., autoreset_mode=AutoresetMode.SAME_STEP), or use DummyVecEnv instead."
            )
        self.vector_env = vector_env
        self.spec = vector_env.spec
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        if "render_fps" in vector_env.metadata:
            self.metadata["render_fps"] = vector_env.metadata["render_fps"]
        self._actions: NDArray[Any] | None = None

    def reset(self) -> VecEnvObs:
        """Restart all rows, with the seeds and options set before by `seed` and `set_options`, which count once.

        :return: the first observations
        :raises ValueError: if rows were given different options, which a vector environment cannot take
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError(f"a vector environment resets all rows with the same options; got {self._options}")
        # VecEnv.seed counts upwards from the first row's seed, and so does a vector environment given an int.
        seed = None if self._seeds[0] is None else int(self._seeds[0])
        observations, infos = self.vector_env.reset(seed=seed, options=options or None)
        self.reset_infos = _split_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`.

        :param actions: (B, N) integers or (B, N, A) floats
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows.

        :return: observations; rewards (B,) float32; dones (B,); one info per row
        """
        observations, rewards, terminations, truncations, vector_infos = self.vector_env.step(self._actions)
        dones = terminations | truncations
        infos = _split_infos(vector_infos, self.num_envs)
        for info in infos:
            info["TimeLimit.truncated"] = False
        for row in np.flatnonzero(dones).tolist():
            infos[row] = self._last_info(infos[row], row, truncated=not terminations[row])
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture per row, or None for each if the render mode is not ``rgb_array``."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return list(cast("tuple[NDArray[np.uint8], ...]", self.vector_env.render()))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the single environments where there are any, else the vector environment's own, once per row.

        :raises AttributeError: if there is none of that name
        """
        rows = self._rows(indices)
        if hasattr(self.vector_env, "get_attr") and attr_name != "render_mode":
            values = self.vector_env.get_attr(attr_name)
            return [values[row] for row in rows]
        return [getattr(self.vector_env, attr_name)] * len(rows)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an existing attribute for all rows at once.

        :raises AttributeError: if there is none of that name
        :raises NotImplementedError: if it is meant for some rows alone
        """
        self._check_all_rows(indices, f"set {attr_name!r}")
        if hasattr(self.vector_env, "set_attr"):
            self.vector_env.set_attr(attr_name, value)
            return
        getattr(self.vector_env, attr_name)  # refuse to invent one
        setattr(self.vector_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of every single environment, where there are any; ``render`` works always.

        :return: one result per row
        :raises NotImplementedError: if there are no single environments, or only some are meant
        """
        if method_name == "render":
            frames = self.vector_env.render() or (None,) * self.num_envs
            return [frames[row] for row in self._rows(indices)]
        self._check_all_rows(indices, f"call {method_name!r}")
        if not hasattr(self.vector_env, "call"):
            raise NotImplementedError(
                f"{self.vector_env} holds no single environments, so {method_name!r} cannot be called on them. "
                "Pass vec_env_cls=DummyVecEnv to make_team_vec_env to have some."
            )
        return list(self.vector_env.call(method_name, *method_args, **method_kwargs))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for each row: rows are not single environments with wrappers around them."""
        return [False] * len(self._rows(indices))

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the rows go on, as plain data.

        :raises EnvStateError: if the vector environment, or a wrapper of it, has no ``state_dict()`` and
            ``load_state_dict(state)``
        """
        return {"vector_env": collect_layers(self._layers(), {}), "resets": reset_orders(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where other rows were, without a reset.

        :param state: from `state_dict`
        :raises EnvStateError: if the vector environment cannot take its part
        :raises ValueError: if another part does not fit; nothing is changed then
        """
        checked_entries(state, ("vector_env", "resets"), type(self).__name__)
        resets = checked_reset_orders(self, state["resets"])
        restore_layers(self._layers(), {}, state["vector_env"])
        set_reset_orders(self, resets)

    def _layers(self) -> list[VectorEnv[Any, Any, Any]]:
        layers = [self.vector_env]
        while isinstance(layers[-1], VectorWrapper):
            layers.append(layers[-1].env)
        return layers

    def _last_info(self, info: dict[str, Any], row: int, truncated: bool) -> dict[str, Any]:
        """The info of an episode's last step, made of the info that Gymnasium gives for that step and the restart.

        :raises ValueError: if the last observation is missing
        """
        if "final_obs" not in info:
            raise ValueError(
                f"{self.vector_env} restarted row {row} without reporting its last observation under "
                "infos['final_obs'], as AutoresetMode.SAME_STEP demands."
            )
        del info["TimeLimit.truncated"]
        last_obs, last_info = info.pop("final_obs"), info.pop("final_info", {})
        # What is left came with the restart; under SB3's conventions it does not belong to the episode that ended.
        self.reset_infos[row] = info
        return {**last_info, "terminal_observation": last_obs, "TimeLimit.truncated": truncated}

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        chosen: Iterable[int] = self._get_indices(indices)
        return list(chosen)

    def _check_all_rows(self, indices: VecEnvIndices, action: str) -> None:
        if set(self._rows(indices)) != set(range(self.num_envs)):
            raise NotImplementedError(
                f"cannot {action} for the rows {self._rows(indices)} alone: a vector environment changes all "
                f"{self.num_envs} together. Pass vec_env_cls=DummyVecEnv to make_team_vec_env to address single ones."
            )


def _split_infos(vector_infos: dict[str, Any], n_rows: int) -> list[dict[str, Any]]:
    """The infos of a Gymnasium vector environment, row by row.

    There, each key has a partner with a leading underscore, (B,) bool, that says which rows have it; dicts are nested.
    """
    infos: list[dict[str, Any]] = [{} for _ in range(n_rows)]
    for key, values in vector_infos.items():
        if key.startswith("_") and key[1:] in vector_infos:
            continue
        mask = vector_infos.get(f"_{key}")
        rows = range(n_rows) if mask is None else np.flatnonzero(mask).tolist()
        by_row = _split_infos(values, n_rows) if isinstance(values, dict) else values
        for row in rows:
            entry = by_row[row]
            infos[row][key] = entry.item() if isinstance(entry, np.generic) else entry
    return infos
