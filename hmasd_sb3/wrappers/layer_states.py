"""Taking the state of objects wrapped in each other, and giving it back: games, environments and vector environments.

Each layer has a state of its own. Known wrappers are read from outside; every other layer must have ``state_dict()`` and
``load_state_dict(state)``, named as in torch. A wrapper's cover the wrapper alone, an innermost layer's all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hmasd_sb3.envs.plain_state import checked_entries, checked_like, plain_copy

State = dict[str, Any]


class EnvStateError(RuntimeError):
    """An environment cannot give its state, or cannot take one."""


class LayerKind(NamedTuple):
    """How to treat layers of one class that have no methods of their own for it."""

    collect: Callable[[Any], State]
    """The layer's own state; need not be a copy."""
    check: Callable[[Any, State], None]
    """Raises a ValueError or an `EnvStateError` if a state does not fit the layer, which stays as it is."""
    restore: Callable[[Any, State], None]
    """Puts a state that fits into the layer."""


Known = Mapping[type, LayerKind]


def attributes(*names: str) -> LayerKind:
    """A layer whose state is in these attributes, of which arrays keep their shapes and dtypes."""

    def collect(layer: Any) -> State:
        return {name: getattr(layer, name) for name in names}

    def check(layer: Any, state: State) -> None:
        checked_entries(state, names, type(layer).__name__)
        for name in names:
            present = getattr(layer, name)
            if isinstance(present, np.ndarray):
                checked_like(state[name], present, f"{name!r} of {type(layer).__name__}")

    def restore(layer: Any, state: State) -> None:
        for name in names:
            setattr(layer, name, state[name])

    return LayerKind(collect, check, restore)


STATELESS = attributes()


def collect_layers(layers: Sequence[Any], known: Known) -> list[State]:
    """The state of each layer, from the outside in: plain data that shares nothing with the layers.

    :param layers: the innermost one last
    :param known: by class, not counting its subclasses
    :raises EnvStateError: naming the class that cannot give its state
    """
    collected = []
    for layer in layers:
        name = type(layer).__name__
        _check_can(layer, known, innermost=layer is layers[-1])
        try:
            kind = known.get(type(layer))
            state = layer.state_dict() if kind is None else kind.collect(layer)
            collected.append({"class": name, "state": plain_copy(state, f"the state of {name}")})
        except EnvStateError:
            raise
        except Exception as error:
            raise EnvStateError(f"{name} could not give its state: {type(error).__name__}: {error}") from error
    return collected


def check_layers(layers: Sequence[Any], known: Known, collected: Any) -> None:
    """Refuse states that are not those of such layers, as far as this can be seen from outside. Changes nothing.

    :param collected: from `collect_layers`
    :raises EnvStateError: naming what does not fit
    """
    found = [type(layer).__name__ for layer in layers]
    try:
        for entry in collected:
            checked_entries(entry, ("class", "state"), "a layer")
        wanted = [entry["class"] for entry in collected]
    except (TypeError, ValueError) as error:
        raise EnvStateError(f"this is no state of {found}: {error}") from error
    if wanted != found:
        raise EnvStateError(
            f"the state is of other layers: from the outside in, they were {wanted}, and here they are {found}. Make the "
            "environments as they were made then."
        )
    for layer, entry in zip(layers, collected, strict=True):
        _check_can(layer, known, innermost=layer is layers[-1])
        kind = known.get(type(layer))
        if kind is not None:
            _guarded(layer, kind.check, layer, entry["state"])


def restore_layers(layers: Sequence[Any], known: Known, collected: Any) -> None:
    """Put states back, those of inner layers first.

    :param collected: from `collect_layers`; stays as it is
    :raises EnvStateError: if they do not fit. Nothing is changed then, unless a layer's own ``load_state_dict`` raised.
    """
    check_layers(layers, known, collected)
    for layer, entry in reversed(list(zip(layers, collected, strict=True))):
        kind = known.get(type(layer))
        state = _guarded(layer, plain_copy, entry["state"], f"the state of {type(layer).__name__}")
        if kind is None:
            _guarded(layer, layer.load_state_dict, state)
        else:
            _guarded(layer, kind.restore, layer, state)


def _check_can(layer: Any, known: Known, innermost: bool) -> None:
    # Asked of the class: wrappers pass on what is asked of them to what they are around.
    if type(layer) in known or all(callable(getattr(type(layer), name, None)) for name in ("state_dict", "load_state_dict")):
        return
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if innermost:
        hint = "Give its class state_dict(), which returns all that decides how it goes on as plain data,"
    else:
        hint = "Give the wrapper's class state_dict(), which returns what it holds itself, without what it is around,"
    raise EnvStateError(
        f"{name} cannot give or take its state. {hint} and load_state_dict(state); see 'State for exact resume' in "
        "docs/environments.md."
    )


def _guarded(layer: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; errors become `EnvStateError`, which name the layer's class."""
    try:
        return function(*arguments)
    except EnvStateError:
        raise
    except Exception as error:
        raise EnvStateError(f"{type(layer).__name__} could not take this state: {type(error).__name__}: {error}") from error
