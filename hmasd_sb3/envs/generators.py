"""NumPy's random generators as plain data, for ``state_dict()`` and ``load_state_dict()`` of games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hmasd_sb3.envs.plain_state import checked_entries, plain_copy

BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
"""NumPy's own, the only ones that are made from a state."""

_SEED_SEQUENCE = ("entropy", "spawn_key", "pool_size", "n_children_spawned")


def generator_state(rng: np.random.Generator | None) -> dict[str, Any] | None:
    """Everything that decides what a generator draws next, and what generators it spawns.

    :param rng: the generator, which stays as it is; None where a game has made none yet
    :return: plain data for `restored_generator`; None for None
    :raises ValueError: if it draws from a bit generator that is none of NumPy's own
    """
    if rng is None:
        return None
    bits: Any = rng.bit_generator
    name = type(bits).__name__
    if getattr(np.random, name, None) is not type(bits) or name not in BIT_GENERATORS:
        raise ValueError(
            f"the state of a {type(bits).__module__}.{name} cannot be kept: use one of NumPy's own bit generators, "
            f"{', '.join(BIT_GENERATORS)}, as numpy.random.default_rng does."
        )
    sequence = bits.seed_seq if isinstance(bits.seed_seq, np.random.SeedSequence) else None
    state = plain_copy(bits.state, f"the state of {name}")
    return {**state, "seed_sequence": None if sequence is None else _sequence_state(sequence)}


def restored_generator(state: Mapping[str, Any] | None) -> np.random.Generator | None:
    """A new generator that goes on where another one was.

    :param state: from `generator_state`
    :raises ValueError: if it names an unknown bit generator, or is no state of it
    """
    if state is None:
        return None
    if not isinstance(state, Mapping) or "bit_generator" not in state:
        raise ValueError(
            f"a generator's state must be a dict from generator_state, with the key 'bit_generator'; got {state!r}"
        )
    name = state["bit_generator"]
    if name not in BIT_GENERATORS:
        raise ValueError(f"a generator's state must be of one of NumPy's {', '.join(BIT_GENERATORS)}; got {name!r}")
    try:
        sequence = state["seed_sequence"]
        # Without a sequence of its own it cannot have spawned; it has to be made from some seed all the same.
        bits = getattr(np.random, name)(0 if sequence is None else _restored_sequence(sequence))
        bits.state = plain_copy({key: value for key, value in state.items() if key != "seed_sequence"}, "a generator's state")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"this is no state of a {name}, as generator_state gives: {type(error).__name__}: {error}. Got {state!r}"
        ) from error
    return np.random.Generator(bits)


def _sequence_state(sequence: np.random.SeedSequence) -> dict[str, Any]:
    entropy = sequence.entropy
    return {
        "entropy": entropy if entropy is None or isinstance(entropy, int) else [int(word) for word in entropy],
        "spawn_key": [int(word) for word in sequence.spawn_key],
        "pool_size": int(sequence.pool_size),
        "n_children_spawned": int(sequence.n_children_spawned),
    }


def _restored_sequence(state: Mapping[str, Any]) -> np.random.SeedSequence:
    checked_entries(state, _SEED_SEQUENCE, "a seed sequence")
    return np.random.SeedSequence(
        state["entropy"],
        spawn_key=state["spawn_key"],
        pool_size=state["pool_size"],
        n_children_spawned=state["n_children_spawned"],
    )
