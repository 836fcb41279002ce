"""Which skills a team uses: counted while it plays, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hmasd_sb3.monitoring.captions import AGENT_SKILL_COLOURS, TEAM_SKILL_COLOURS, Colour
from hmasd_sb3.monitoring.optional import import_optional

Counts = npt.NDArray[np.int64]


class SkillUsage(NamedTuple):
    """How often skills were in force and how often they were assigned. N agents, n_Z team skills, n_z agent skills."""

    team_steps: Counts
    """(n_Z,) environment steps under each team skill."""
    team_assigned: Counts
    """(n_Z,) how often each was chosen."""
    agent_steps: Counts
    """(N, n_z) steps of each agent under each of its skills, while it was there."""
    agent_assigned: Counts
    """(N, n_z) how often each was chosen for an agent that was there."""
    together: Counts
    """(n_Z, n_z) agents' steps by team skill and own skill."""

    @property
    def team_shares(self) -> npt.NDArray[np.float64]:
        """(n_Z,) shares of all steps."""
        return _shares(self.team_steps)

    @property
    def agent_shares(self) -> npt.NDArray[np.float64]:
        """(N, n_z) shares of each agent's steps; zeros for one that never was there."""
        return _shares(self.agent_steps)


class SkillCounts:
    """Counts skills from what ``predict`` returns as state, step by step.

    :param model: whose ``n_team_skills`` and ``n_agent_skills`` say how many there are; without them, as many are counted as
        turn up
    """

    def __init__(self, model: Any) -> None:
        self._sizes = [int(getattr(model, name, 0)) for name in ("n_team_skills", "n_agent_skills")]
        self._steps_left: npt.NDArray[Any] | None = None
        self._usage: SkillUsage | None = None

    def note(self, state: Any, starts: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_], observation: Any) -> None:
        """Take in one acting step.

        :param state: what ``predict`` returned: team skill (B,), agents' skills (B, N), steps left (B,), ...; anything else
            is passed over
        :param starts: (B,) where an episode begins
        :param counted: (B,) the environments that count
        :param observation: by which was acted; its ``agent_mask``, if any, says who is there
        """
        skills = batch_of_skills(state)
        if skills is None:
            return
        team, agents, left = skills
        # A running skill counts down by one each step; a count that does not is that of a new assignment.
        before, self._steps_left = self._steps_left, left.copy()
        assigned = starts | (left >= before) if before is not None else np.ones_like(starts)
        mask = observation.get("agent_mask") if isinstance(observation, dict) else None
        there = np.ones(agents.shape, dtype=bool) if mask is None else np.asarray(mask).astype(bool)
        usage = self._room_for(int(team.max()) + 1, int(agents.max()) + 1, agents.shape[1])
        np.add.at(usage.team_steps, team[counted], 1)
        np.add.at(usage.team_assigned, team[counted & assigned], 1)
        for flags, into in ((counted, usage.agent_steps), (counted & assigned, usage.agent_assigned)):
            rows, columns = np.nonzero(there & flags[:, None])
            np.add.at(into, (columns, agents[rows, columns]), 1)
        rows, columns = np.nonzero(there & counted[:, None])
        np.add.at(usage.together, (team[rows], agents[rows, columns]), 1)

    def usage(self) -> SkillUsage | None:
        """What was counted; None if there were no skills."""
        return self._usage

    def _room_for(self, n_team_skills: int, n_agent_skills: int, n_agents: int) -> SkillUsage:
        self._sizes = [max(self._sizes[0], n_team_skills), max(self._sizes[1], n_agent_skills)]
        n_z, n_a = self._sizes
        shapes = ((n_z,), (n_z,), (n_agents, n_a), (n_agents, n_a), (n_z, n_a))
        old = self._usage
        if old is None or old.together.shape != (n_z, n_a):
            self._usage = SkillUsage(*(np.zeros(shape, dtype=np.int64) for shape in shapes))
            for before, now in zip(old or (), self._usage, strict=False):
                now[tuple(slice(size) for size in before.shape)] = before
        assert self._usage is not None
        return self._usage


def batch_of_skills(state: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Team skills (B,), agents' skills (B, N) and steps left (B,) within the state of ``predict``, if it is of that kind."""
    if not isinstance(state, tuple) or len(state) < 3:
        return None
    names = ("team_skill", "agent_skills", "steps_left")
    team, agents, left = (np.asarray(getattr(state, name, state[place])) for place, name in enumerate(names))
    integers = all(np.issubdtype(array.dtype, np.integer) for array in (team, agents, left))
    if not integers or team.ndim != 1 or agents.ndim != 2 or left.shape != team.shape:
        return None
    return team, agents, left


def plot_skill_usage(
    usage: SkillUsage, out_png: Path | str, title: str | None = None, agents: list[str] | None = None
) -> Path:
    """Draw the shares of steps under each skill: the team's, and each agent's.

    :param usage: of an evaluation
    :param out_png: the picture; its folder is created if need be
    :param title: heading of the picture
    :param agents: names of the N agents
    :return: ``out_png`` as a path
    :raises ImportError: if matplotlib is not installed
    """
    figure_module = import_optional("matplotlib.figure", purpose="Drawing the use of skills", extra="demo")
    agg_module = import_optional("matplotlib.backends.backend_agg", purpose="Drawing the use of skills", extra="demo")
    names = agents or [f"agent {index}" for index in range(len(usage.agent_steps))]
    figure = figure_module.Figure(figsize=(7.0, 1.9 + 0.34 * (1 + len(names))), layout="constrained")
    agg_module.FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, len(names)])
    _draw_bars(upper, usage.team_shares[None], ["team"], "Z", TEAM_SKILL_COLOURS)
    _draw_bars(lower, usage.agent_shares, names, "z", AGENT_SKILL_COLOURS)
    lower.set_xlabel("share of steps")
    lower.set_xlim(0.0, 1.0)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=150, format="png")
    return out_png


def _draw_bars(axes: Any, shares: npt.NDArray[np.float64], names: list[str], letter: str, colours: tuple[Colour, ...]) -> None:
    """One bar per row, divided by skill; shares large enough to be read are written into it."""
    left = np.zeros(len(names))
    for skill in range(shares.shape[1]):
        colour = tuple(part / 255 for part in colours[skill % len(colours)])
        axes.barh(names, shares[:, skill], left=left, color=colour, edgecolor="white", label=f"{letter} = {skill}")
        ink = "black" if sum(colour) > 1.4 else "white"
        for row in np.flatnonzero(shares[:, skill] >= 0.06):
            place = left[row] + shares[row, skill] / 2
            axes.text(place, row, f"{shares[row, skill]:.0%}", ha="center", va="center", color=ink, fontsize=9)
        left += shares[:, skill]
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, ncols=1 + (shares.shape[1] - 1) // 8)


def _shares(counts: Counts) -> npt.NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1))
