"""Which actions are legal: the game's own masks, wherever it puts them, and the limits of agents with fewer actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hmasd_sb3.wrappers.agents import AgentActions, AgentObservations
from hmasd_sb3.wrappers.team_spaces import INNER_MASK, checked_array, rows_of


class ActionMasks:
    """The team's action mask, (N, A) int8.

    :param agents: ``possible_agents`` of the game
    :param observations: how they see
    :param actions: how they act
    :param infos: of a reset, by agent: where they hold masks, they must do so at every step
    :param present: (N,) bool, who is there after that reset
    :raises ValueError: if masks do not fit the actions, or only some agents have one
    """

    exist: bool
    """Whether there is anything to mask."""
    legal: NDArray[np.int8]
    """(N, A), as read last."""

    def __init__(
        self,
        agents: list[Any],
        observations: AgentObservations,
        actions: AgentActions,
        infos: Mapping[Any, Any],
        present: NDArray[np.bool_],
    ) -> None:
        self._agents = agents
        self._own = actions.own
        self._sizes = actions.own.sum(axis=1).tolist()
        self._in_obs = observations.mask_in_obs
        self._in_infos = not self._in_obs and self._infos_hold_masks(infos, present)
        if (self._in_obs or self._in_infos) and not actions.discrete:
            raise ValueError(
                "'action_mask' says which of a Discrete space's actions are legal, but these agents act by a Box."
            )
        if self._in_obs:
            self._check_fit(observations.mask_spaces)
        self.exist = self._in_obs or self._in_infos or actions.differ
        self.legal = self._own

    def read(
        self, observations: Mapping[Any, Any], infos: Mapping[Any, Any], present: NDArray[np.bool_], last: bool
    ) -> NDArray[np.int8]:
        """The masks of the agents that are there; everything is allowed to the others, as it has no effect.

        After the last step nobody acts: a mask may then be blank, and a missing one allows all.

        :raises ValueError: if an agent that is to act has no mask or no legal action, or masks come that were not announced
        """
        if not (self._in_obs or self._in_infos):
            self._check_none_in(infos)
            if self.exist:
                self.legal = np.where(present[:, None], self._own, np.int8(1))
            return self.legal
        self.legal = np.ones_like(self._own)
        for row in rows_of(present):
            self.legal[row] = self._own[row]
            agent, size = self._agents[row], self._sizes[row]
            source = observations[agent] if self._in_obs else infos.get(agent) or {}
            if INNER_MASK in source:
                mask = checked_array(source[INNER_MASK], (size,), np.dtype(np.int8), f"the mask of {agent!r}")
                if ((mask != 0) & (mask != 1)).any():
                    raise ValueError(f"the action mask of {agent!r} must hold 0 and 1 only; got {mask}.")
                self.legal[row, :size] = mask
            elif not last:
                raise ValueError(f"{agent!r} was given no 'action_mask' this time; the game must give one at every step.")
            if not last and not self.legal[row].any():
                raise ValueError(f"the action mask of {agent!r} allows no action; an agent that is to act needs one.")
        return self.legal

    def _check_none_in(self, infos: Mapping[Any, Any]) -> None:
        for agent in self._agents:
            if INNER_MASK in (infos.get(agent) or ()):
                raise ValueError(
                    f"the info of {agent!r} now carries an 'action_mask', but the infos of the game's first reset() carried "
                    "none: give masks to all agents at every reset and step."
                )

    def _infos_hold_masks(self, infos: Mapping[Any, Any], present: NDArray[np.bool_]) -> bool:
        there = [self._agents[row] for row in rows_of(present)]
        without = [agent for agent in there if INNER_MASK not in (infos.get(agent) or {})]
        if len(without) == len(there):
            return False
        if without:
            raise ValueError(f"the infos of some agents carry an 'action_mask', but not those of {without}: give it to all.")
        return True

    def _check_fit(self, mask_spaces: dict[Any, spaces.Space[Any]]) -> None:
        for row, agent in enumerate(self._agents):
            if mask_spaces[agent].shape != (self._sizes[row],):
                raise ValueError(
                    f"'action_mask' must have one entry for each of the {self._sizes[row]} actions of {agent!r}; its space is "
                    f"{mask_spaces[agent]}."
                )
