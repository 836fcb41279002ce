"""The seeds and options that a ``VecEnv`` has been given for its next reset."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.envs.plain_state import checked_entries, checked_type, plain_copy

ResetOrders = dict[str, list[Any]]


def reset_orders(venv: VecEnv) -> ResetOrders:
    """What ``seed`` and ``set_options`` have left for the next reset; mostly nothing, as each reset uses it up."""
    seeds = [None if seed is None else int(seed) for seed in venv._seeds]
    return {"seeds": seeds, "options": plain_copy(venv._options, "the options for the next reset")}


def checked_reset_orders(venv: VecEnv, orders: Any) -> ResetOrders:
    """The orders themselves.

    :param orders: from `reset_orders`
    :raises ValueError: if they are not for as many environments
    """
    checked_entries(orders, ("seeds", "options"), "what the next reset is given")
    for key in ("seeds", "options"):
        if len(checked_type(orders[key], list, repr(key))) != venv.num_envs:
            raise ValueError(f"{key!r} must have one entry per environment, {venv.num_envs}; got {orders[key]}")
    return orders  # type: ignore[no-any-return]


def set_reset_orders(venv: VecEnv, orders: ResetOrders) -> None:
    """Leave these for the next reset.

    :param orders: from `checked_reset_orders`
    """
    venv._seeds, venv._options = list(orders["seeds"]), plain_copy(orders["options"], "'options'")
