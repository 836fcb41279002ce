"""Plays one episode and writes it as a GIF that shows the skills in force. Knows ``predict``, not the networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from hmasd_sb3.monitoring.captions import Caption, Skills, draw_frame
from hmasd_sb3.monitoring.optional import import_optional

LAST_FRAME_SECONDS = 2.0
"""How long the end of the episode stays on screen before the GIF starts over."""


class Predictor(Protocol):
    """What is asked of a model: Stable-Baselines3's ``predict``, with whatever it carries from step to step."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]: ...


class SkillChoice(NamedTuple):
    """One decision of the skill coordinator."""

    step: int  # environment step at which the skills took effect
    team_skill: int
    agent_skills: tuple[int, ...]  # one per agent


@dataclass(frozen=True)
class EpisodeSummary:
    """
    What happened in a recorded episode.

    :param n_steps: environment steps played
    :param episode_return: sum of the team rewards, not normalised
    :param success: the episode's ``is_success``, ``None`` if the game reports none or did not end
    :param finished: False if the recording was cut off at ``max_steps``
    :param choices: the skills, each time they were chosen; empty for a model without skills
    :param gif: the picture file
    """

    n_steps: int
    episode_return: float
    success: bool | None
    finished: bool
    choices: tuple[SkillChoice, ...]
    gif: Path


def record_episode(
    model: Predictor,
    env: VecEnv | gym.Env[Any, Any],
    out_gif: Path | str,
    *,
    deterministic: bool = True,
    max_steps: int = 1000,
    fps: float = 4,
    seed: int | None = None,
) -> EpisodeSummary:
    """
    Play one episode and write it as an animated GIF.

    Below each picture stand the step, the reward so far, the team skill Z and each agent's skill z; the bar lights up
    whenever skills are assigned. Each picture shows the situation in which the skills written below it act. The last
    one, held for two seconds, shows how the episode ended. A vectorised environment that steps its games by itself
    (not a ``DummyVecEnv``) has already started the next episode by then, so there the last picture is the one before.

    :param model: anything with Stable-Baselines3's ``predict``; its skills are shown if it carries any
    :param env: one team, as an environment or as a ``VecEnv`` of one, made with ``render_mode="rgb_array"``
    :param out_gif: the file to write; its folder is created if need be
    :param deterministic: take the most probable skills and actions instead of sampling
    :param max_steps: stop after this many environment steps if the episode has not ended
    :param fps: environment steps shown per second
    :param seed: seeds the environment if given
    :return: length, reward, outcome and skills of the episode
    :raises ValueError: if ``env`` holds several teams or does not render to arrays, or ``max_steps`` or ``fps`` is not
        positive
    :raises ImportError: if imageio is not installed
    """
    if max_steps < 1 or fps <= 0:
        raise ValueError(f"max_steps and fps must be positive, got max_steps={max_steps} and fps={fps}")
    # Asked for first: a missing package should not cost a whole episode.
    imageio = import_optional("imageio.v3", purpose="Writing an episode as a GIF", extra="demo")
    venv = _as_single_vec_env(env)
    keeper = _keep_last_picture(venv)
    try:
        recorder = _Recorder(model, venv, keeper)
        recorder.play(deterministic=deterministic, max_steps=max_steps, seed=seed)
    finally:
        _let_go(venv, keeper)
    out_gif = Path(out_gif)
    out_gif.parent.mkdir(parents=True, exist_ok=True)
    durations = [1000.0 / fps] * (len(recorder.frames) - 1) + [1000.0 * LAST_FRAME_SECONDS]
    # The format is named because a path without ".gif" would otherwise become another kind of file.
    imageio.imwrite(out_gif, np.stack(recorder.frames), extension=".gif", duration=durations, loop=0)
    return EpisodeSummary(
        n_steps=recorder.n_steps,
        episode_return=recorder.episode_return,
        success=recorder.success,
        finished=recorder.finished,
        choices=tuple(recorder.choices),
        gif=out_gif,
    )


class _KeepLastPicture(gym.Wrapper[Any, Any, Any, Any]):
    """Takes a picture just before each reset: a ``DummyVecEnv`` resets a finished game before anyone can look."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.armed = False
        self.last_picture: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.armed:
            self.last_picture = self.env.render()
        return self.env.reset(seed=seed, options=options)


class _Recorder:
    """Plays one episode, one frame per step."""

    def __init__(self, model: Predictor, venv: VecEnv, keeper: _KeepLastPicture | None) -> None:
        self.frames: list[npt.NDArray[np.uint8]] = []
        self.choices: list[SkillChoice] = []
        self.n_steps = 0
        self.episode_return = 0.0
        self.success: bool | None = None
        self.finished = False
        self._model = model
        self._venv = venv
        self._keeper = keeper
        self._vec_normalize: VecNormalize | None = unwrap_vec_normalize(venv)

    def play(self, *, deterministic: bool, max_steps: int, seed: int | None) -> None:
        """Play until the episode ends or ``max_steps`` are over."""
        if seed is not None:
            self._venv.seed(seed)
        observation = self._venv.reset()
        if self._keeper is not None:
            self._keeper.armed = True
        state: Any = None
        steps_left: int | None = None
        skills: Skills | None = None
        names: tuple[str, ...] | None = None
        info: dict[str, Any] = {}
        picture = self._look()
        while not self.finished and self.n_steps < max_steps:
            episode_start = np.array([self.n_steps == 0])
            actions, state = self._model.predict(
                observation, state=state, episode_start=episode_start, deterministic=deterministic
            )
            skills, previous, steps_left = read_skills(state), steps_left, _read_steps_left(state)
            # A running skill counts down by one each step; a count that does not is that of a new assignment.
            assigned = skills is not None and (previous is None or steps_left is None or steps_left >= previous)
            if skills is not None and assigned:
                self.choices.append(SkillChoice(self.n_steps, *skills))
            if names is None:
                names = () if skills is None else agent_names(self._venv, len(skills.agent_skills))
            present = _present_agents(observation)
            self._add_frame(picture, skills, names, assigned=assigned, note="", present=present)
            observation, rewards, dones, infos = self._venv.step(actions)
            self.n_steps += 1
            self.episode_return += float(self._raw_reward(rewards)[0])
            self.finished, info = bool(dones[0]), infos[0]
            if not self.finished:
                picture = self._look()
            elif self._keeper is not None:
                picture = _as_picture(self._keeper.last_picture)
        if self.finished and info.get("is_success") is not None:
            self.success = bool(info["is_success"])
        self._add_frame(picture, skills, names or (), assigned=False, note=self._outcome(info))

    def _look(self) -> npt.NDArray[np.uint8]:
        return _as_picture(self._venv.get_images()[0])

    def _raw_reward(self, rewards: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rewards as the game gave them (1,): the sum of normalised ones would mean nothing to a reader."""
        return rewards if self._vec_normalize is None else self._vec_normalize.get_original_reward()

    def _outcome(self, info: dict[str, Any]) -> str:
        if not self.finished:
            return "recording stopped"
        if self.success is not None:
            return "success" if self.success else "no success"
        return "time limit" if info.get("TimeLimit.truncated", False) else "end of episode"

    def _add_frame(
        self,
        picture: npt.NDArray[np.uint8],
        skills: Skills | None,
        names: tuple[str, ...],
        *,
        assigned: bool,
        note: str,
        present: tuple[bool, ...] | None = None,
    ) -> None:
        caption = Caption(self.n_steps, self.episode_return, skills, assigned, note, present)
        self.frames.append(draw_frame(picture, caption, names))


def read_skills(state: Any) -> Skills | None:
    """
    The skills inside what ``predict`` returned as state, for a batch of one team.

    :param state: a NamedTuple with ``team_skill`` (1,) and ``agent_skills`` (1, N) integers, or a tuple that starts
        with these two
    :return: the skills, or ``None`` for any other state: that of another recurrent model, or none at all
    """
    if not isinstance(state, tuple) or len(state) < 2:
        return None
    team_skill = np.asarray(getattr(state, "team_skill", state[0]))
    agent_skills = np.asarray(getattr(state, "agent_skills", state[1]))
    are_integers = all(np.issubdtype(array.dtype, np.integer) for array in (team_skill, agent_skills))
    # An LSTM's state is a tuple as well, but of floats.
    if not are_integers or team_skill.shape != (1,) or agent_skills.ndim != 2:
        return None
    return Skills(int(team_skill[0]), tuple(int(skill) for skill in agent_skills[0]))


def _read_steps_left(state: Any) -> int | None:
    """Steps until the next assignment, or ``None`` if the state does not say."""
    if read_skills(state) is None or len(state) < 3:
        return None
    return int(np.asarray(getattr(state, "steps_left", state[2]))[0])


def _present_agents(observation: Any) -> tuple[bool, ...] | None:
    """Who is in the game, where agents may leave it."""
    if not isinstance(observation, dict) or "agent_mask" not in observation:
        return None
    return tuple(bool(there) for there in observation["agent_mask"][0])


def agent_names(venv: VecEnv, n_agents: int) -> tuple[str, ...]:
    """One name per agent: the game's own where it tells them and they are short enough for a caption."""
    default = tuple(f"agent {index}" for index in range(n_agents))
    try:
        names = tuple(str(name).replace("_", " ") for name in venv.get_attr("possible_agents")[0])
    except (AttributeError, NotImplementedError, TypeError):
        return default
    return names if len(names) == n_agents and all(len(name) <= 16 for name in names) else default


def _as_single_vec_env(env: VecEnv | gym.Env[Any, Any]) -> VecEnv:
    venv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    if venv.num_envs != 1:
        raise ValueError(f"an episode is recorded from one environment, got a VecEnv of {venv.num_envs}: make it of 1")
    if venv.render_mode != "rgb_array":
        raise ValueError(
            f'recording needs an environment made with render_mode="rgb_array", got render_mode={venv.render_mode!r}'
        )
    return venv


def _keep_last_picture(venv: VecEnv) -> _KeepLastPicture | None:
    base = venv.unwrapped
    if not isinstance(base, DummyVecEnv):
        return None
    keeper = _KeepLastPicture(base.envs[0])
    base.envs[0] = keeper
    return keeper


def _let_go(venv: VecEnv, keeper: _KeepLastPicture | None) -> None:
    base = venv.unwrapped
    if keeper is not None and isinstance(base, DummyVecEnv):
        base.envs[0] = keeper.env


def _as_picture(rendered: Any) -> npt.NDArray[np.uint8]:
    if rendered is None:
        raise ValueError('the environment rendered nothing: it must be made with render_mode="rgb_array" and implement it')
    # Copied, since some games draw each picture into the same array.
    return np.array(rendered, dtype=np.uint8)
