"""The games inside a SuperSuit vector environment: how they are found there, also in its worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium as gym
from pettingzoo import AECEnv, ParallelEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from supersuit.vector import ConcatVecEnv, MarkovVectorEnv, ProcConcatVec
from supersuit.vector.sb3_vector_wrapper import SB3VecEnvWrapper

Pipeline = Any
"""A ``MarkovVectorEnv``, ``ConcatVecEnv`` or ``ProcConcatVec``: SuperSuit publishes no types."""

_STOP_SECONDS = 10.0
_TAKEN = "_games_are_taken"  # an attribute set on a pipeline
_PIPELINE = "supersuit.concat_vec_envs_v1(supersuit.pettingzoo_env_to_vec_env_v1(game), n_teams)"


@dataclass(frozen=True)
class GameCopy:
    """One team's game, and what it is like."""

    game: ParallelEnv | bytes
    """The game itself, or its pickle if it comes from another process."""
    agents: list[Any]
    """Its ``possible_agents``."""
    observation_spaces: list[gym.Space[Any]]
    action_spaces: list[gym.Space[Any]]


def describe_game(game: ParallelEnv) -> GameCopy:
    """A game with its agents and spaces."""
    agents = list(game.possible_agents)
    return GameCopy(game, agents, [game.observation_space(a) for a in agents], [game.action_space(a) for a in agents])


def is_pipeline(venv: Any) -> bool:
    """Whether this is one of SuperSuit's own vector environments, with or without its Stable-Baselines3 base class."""
    inner = venv.venv if isinstance(venv, SB3VecEnvWrapper) else venv
    return isinstance(inner, MarkovVectorEnv | ConcatVecEnv | ProcConcatVec)


def find_pipeline(venv: Any) -> Pipeline:
    """SuperSuit's own vector environment: ``venv`` or what its Stable-Baselines3 base class is around.

    :raises TypeError: if it is none of SuperSuit's, or something else is around it
    """
    inner = venv.venv if isinstance(venv, SB3VecEnvWrapper) else venv
    if isinstance(inner, MarkovVectorEnv | ConcatVecEnv | ProcConcatVec):
        return inner
    if isinstance(venv, ParallelEnv | AECEnv):
        hint = "for a game, use make_team_vec_env(function_that_makes_it, n_envs), or TeamEnv(game)"
    elif isinstance(venv, VecEnvWrapper) and isinstance(_innermost(venv), MarkovVectorEnv | ConcatVecEnv | ProcConcatVec):
        hint = (
            f"{type(venv).__name__} is around one, and sees agents where it should see teams. Turn them round: "
            f"{type(venv).__name__}(SuperSuitTeamVecEnv(venv))"
        )
    elif isinstance(venv, gym.vector.VectorWrapper):
        hint = "a Gymnasium vector wrapper is around it; put wrappers on the game instead, or around SuperSuitTeamVecEnv"
    elif isinstance(venv, VecEnv):
        hint = "other VecEnvs over teams need no regrouping"
    else:
        hint = f"make one by {_PIPELINE}"
    raise TypeError(
        f"SuperSuitTeamVecEnv takes a SuperSuit vector environment over agents; got {type(venv).__name__}: {hint}."
    )


def mark_taken(pipeline: Pipeline) -> None:
    """Remember that this pipeline's games belong to teams from now on."""
    setattr(pipeline, _TAKEN, True)


def take_games(pipeline: Pipeline) -> list[GameCopy]:
    """The games of a pipeline, in the order of its rows.

    :param pipeline: from `find_pipeline`
    :raises TypeError: if some of its rows are no PettingZoo game's
    :raises ValueError: if its worker processes do not hand over their games
    """
    if getattr(pipeline, _TAKEN, False):
        raise ValueError(
            "the games of this SuperSuit vector environment were taken over by another model or SuperSuitTeamVecEnv. Make a "
            "new one for each."
        )
    if isinstance(pipeline, ProcConcatVec):
        return [copy for n, pipe in enumerate(_living_pipes(pipeline)) for copy in _fetch(pipe, n)]
    return [describe_game(game) for game in _games_here(pipeline)]


def copies_of(game: ParallelEnv, pipeline: Pipeline) -> list[GameCopy]:
    """As many pickled copies of a game as the pipeline has teams.

    :raises ValueError: if the pipeline's rows cannot be that game's
    """
    like = describe_game(game)
    if like.observation_spaces[0] != pipeline.observation_space or like.action_spaces[0] != pipeline.action_space:
        raise ValueError(
            f"the rows have the spaces {pipeline.observation_space} and {pipeline.action_space}, but agents of the game "
            f"given as `game` have {like.observation_spaces[0]} and {like.action_spaces[0]}. Pass the game exactly as it was "
            "given to pettingzoo_env_to_vec_env_v1, with all its wrappers."
        )
    if pipeline.num_envs % len(like.agents):
        raise ValueError(
            f"{pipeline.num_envs} rows are no whole number of teams of the {len(like.agents)} agents of the game given as "
            "`game`. Pass the game exactly as it was given to pettingzoo_env_to_vec_env_v1."
        )
    pickled = cloudpickle.dumps(game)
    copy = GameCopy(pickled, like.agents, like.observation_spaces, like.action_spaces)
    return [copy] * (pipeline.num_envs // len(like.agents))


def check_games(copies: list[GameCopy], n_rows: int) -> None:
    """Refuse games that are not alike, or that are not all of the rows.

    :param n_rows: rows of the pipeline
    :raises ValueError: naming two teams that differ
    """
    first = copies[0]
    for index, copy in enumerate(copies):
        if len(copy.agents) != len(first.agents):
            raise ValueError(
                f"every team must have the same number of rows, but team 0 has {len(first.agents)} agents and team {index} "
                f"has {len(copy.agents)}. Use copies of one game."
            )
        for what in ("agents", "observation_spaces", "action_spaces"):
            if getattr(copy, what) != getattr(first, what):
                raise ValueError(
                    f"all teams must play the same game, but the {what.replace('_', ' ')} of team 0 are "
                    f"{getattr(first, what)} and those of team {index} {getattr(copy, what)}. Use copies of one game."
                )
    here = [id(copy.game.unwrapped) for copy in copies if not isinstance(copy.game, bytes)]
    if len(set(here)) != len(here):
        raise ValueError(
            f"two teams share one game, which can play only one episode at a time. Make copies, as {_PIPELINE} does."
        )
    if n_rows != len(copies) * len(first.agents):
        raise ValueError(f"{len(copies)} teams of {len(first.agents)} agents cannot be {n_rows} rows. Use copies of one game.")


def stop_workers(pipeline: Pipeline) -> None:
    """Close the games in SuperSuit's worker processes and end these.

    Its own ``close`` would leave the games open: it sends a message that its workers take for an error.
    """
    for index, (pipe, process) in enumerate(zip(pipeline.pipes, pipeline.procs, strict=True)):
        pipe.send("close")
        try:
            answer = pipe.recv()
        except EOFError:
            answer = (None, "the process ended")
        if isinstance(answer, tuple):
            warnings.warn(f"closing the games of SuperSuit's worker process {index} failed: {answer[1]}", stacklevel=4)
        else:
            pipe.send("terminate")
        process.join(_STOP_SECONDS)
    pipeline.close()


def _innermost(venv: VecEnvWrapper) -> Any:
    inner: Any = venv
    while isinstance(inner, VecEnvWrapper):
        inner = inner.venv
    return inner


def _games_here(part: Any) -> list[ParallelEnv]:
    if isinstance(part, MarkovVectorEnv):
        return [part.par_env]
    if isinstance(part, ConcatVecEnv):
        return [game for inner in part.vec_envs for game in _games_here(inner)]
    raise TypeError(
        f"every part must be made by pettingzoo_env_to_vec_env_v1; got {type(part).__name__}, whose rows are no teams."
    )


# ---- games in SuperSuit's worker processes


class _CallThere:
    """Calls a function wherever it is unpickled, and stands for what it returns."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return self._function, ()


class _Message:
    """A message whose reading makes a SuperSuit worker process answer with its games.

    Those processes keep what they read in a loop that knows no request for a game. But the reading itself happens where
    the games are: a pickle may call a function when it is read, and that one finds the loop's variables among its callers.
    """

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        # The function travels as code, so that the worker need not import this package, and torch with it.
        return cloudpickle.loads, (cloudpickle.dumps(_CallThere(_make_request())),)


def _make_request() -> Callable[[], tuple[str, Any]]:
    """The function that runs in the worker process; local, as only such functions are pickled as code."""

    def request() -> tuple[str, Any]:
        import sys
        import traceback

        import cloudpickle

        frame: Any = sys._getframe()
        while frame is not None and frame.f_code.co_name != "async_loop":
            frame = frame.f_back
        vec_env: Any = None if frame is None else frame.f_locals.get("vec_env")

        def copies(part: Any) -> list[Any]:
            if hasattr(part, "vec_envs"):
                return [copy for inner in part.vec_envs for copy in copies(inner)]
            game = part.par_env
            agents = list(game.possible_agents)
            seen = [game.observation_space(agent) for agent in agents]
            return [(cloudpickle.dumps(game), agents, seen, [game.action_space(agent) for agent in agents])]

        def answer(_: Any) -> list[Any]:
            del vec_env.env_is_wrapped
            try:
                return ["games", copies(vec_env)]
            except Exception:
                return ["failed", traceback.format_exc()]

        # The one question of the loop whose answer is sent back as it is.
        if vec_env is not None:
            vec_env.env_is_wrapped = answer
        return "env_is_wrapped", object

    return request


def _living_pipes(pipeline: Pipeline) -> list[Connection[Any, Any]]:
    if not pipeline.procs or not all(process.is_alive() for process in pipeline.procs):
        raise ValueError(
            "the worker processes of the SuperSuit vector environment have ended: it was closed, a game failed in it, or its "
            "games were taken over by another model or SuperSuitTeamVecEnv. Make a new one for each."
        )
    return list(pipeline.pipes)


def _fetch(pipe: Connection[Any, Any], index: int) -> list[GameCopy]:
    """The pickled games of one worker process."""
    pipe.send(_Message())
    try:
        answer = pipe.recv()
    except EOFError:
        answer = None
    if isinstance(answer, list) and len(answer) == 2 and answer[0] == "games":
        return [GameCopy(*copy) for copy in answer[1]]
    reason = answer[1] if isinstance(answer, list | tuple) and len(answer) == 2 else f"its answer was {answer!r}"
    raise ValueError(
        f"worker process {index} of the SuperSuit vector environment did not hand over its games. Pass the game from which it "
        f"was made: SuperSuitTeamVecEnv(venv, game=game), or use num_cpus=0. The reason: {reason}"
    )
