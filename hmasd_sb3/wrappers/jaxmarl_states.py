"""What JAX computes with as plain data, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmasd_sb3.envs.jaxmarl_games import JaxMARLGame, JaxTree, import_extra
from hmasd_sb3.envs.plain_state import checked_like, checked_type

KEY_IMPLEMENTATION = "threefry2x32"
"""JAX's default kind of random keys."""


def tree_state(tree: JaxTree) -> list[NDArray[Any]] | None:
    """The arrays of a tree in JAX's order, keys as their data; None for None."""
    return None if tree is None else [_leaf_data(leaf) for leaf in import_extra("jax").tree.leaves(tree)]


def restored_running(
    game: JaxMARLGame, n_rows: int, state: dict[str, Any], names: Sequence[str]
) -> tuple[JaxTree, JaxTree, JaxTree]:
    """Keys, states and observations of running games, as far as they are named, the others None.

    They are put into the structure of freshly started games, of which no more is computed than shapes and dtypes.

    :param n_rows: number of games
    :param state: has the named entries, from `tree_state`; all of them None if no game was started yet
    :param names: some of ``"keys"``, ``"states"``, ``"observations"``
    :raises ValueError: if they do not fit such games
    """
    if all(state[name] is None for name in names):
        return None, None, None
    jax = import_extra("jax")
    keys = jax.random.wrap_key_data(np.zeros((n_rows, 2), np.uint32), impl=KEY_IMPLEMENTATION)
    fresh = dict(zip(("keys", "states", "observations"), jax.eval_shape(game.batched.start, keys), strict=True))
    found = [_restored_tree(state[name], fresh[name], name) if name in names else None for name in fresh]
    return found[0], found[1], found[2]


def _restored_tree(value: Any, like: JaxTree, what: str) -> JaxTree:
    jax = import_extra("jax")
    wanted, structure = jax.tree.flatten(like)
    leaves = checked_type(value, (list, tuple), repr(what))
    if len(leaves) != len(wanted):
        raise ValueError(f"{what!r} must be {len(wanted)} arrays, as such a game has; got {len(leaves)}")
    pairs = enumerate(zip(leaves, wanted, strict=True))
    return jax.tree.unflatten(structure, [_restored_leaf(leaf, one, f"array {i} of {what!r}") for i, (leaf, one) in pairs])


def _restored_leaf(value: Any, like: Any, what: str) -> Any:
    jax = import_extra("jax")
    if not _is_key(like):
        return jax.numpy.asarray(checked_like(value, like, what))
    data = jax.eval_shape(jax.random.key_data, like)
    keys = jax.random.wrap_key_data(checked_like(value, data, what), impl=KEY_IMPLEMENTATION)
    if keys.dtype != like.dtype:
        raise ValueError(f"{what} is a random key of another kind than {KEY_IMPLEMENTATION}, which cannot be restored")
    return keys


def _leaf_data(leaf: Any) -> NDArray[Any]:
    return np.array(import_extra("jax").random.key_data(leaf) if _is_key(leaf) else leaf)


def _is_key(leaf: Any) -> bool:
    jax = import_extra("jax")
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))
