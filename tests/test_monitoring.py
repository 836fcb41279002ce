"""Learning curves and recorded episodes: what they say must be what happened."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from teams import make_model, random_team_vec_env

from hmasd_sb3.monitoring import SkillChoice, plot_learning_curve, plots, record_episode, wilson_interval
from hmasd_sb3.monitoring.captions import Caption, Skills, draw_frame
from hmasd_sb3.monitoring.evaluation import ReportingEvalCallback
from hmasd_sb3.monitoring.optional import import_optional
from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.monitoring.video import read_skills

EPISODE_LENGTH = 7


class CountingGame(gym.Env[Any, Any]):
    """Two agents that succeed after seven steps, whatever they do; the brightness of the picture tells the time."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.MultiDiscrete([2, 2])
    possible_agents = ["agent_0", "agent_1"]

    def __init__(self, render_mode: str | None = "rgb_array", reports_success: bool = True) -> None:
        self.render_mode = render_mode
        self.reports_success = reports_success
        self.time = 0
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        done = self.time == EPISODE_LENGTH
        info = {"is_success": True} if done and self.reports_success else {}
        return np.zeros(1, np.float32), 0.5, done, False, info

    def render(self) -> Any:
        return np.full((60, 60, 3), brightness(self.time), np.uint8)


def brightness(time: int) -> int:
    return 20 + 30 * time


class State(NamedTuple):
    team_skill: Any
    agent_skills: Any
    steps_left: Any
    hidden: Any


class SkilledModel:
    """Assigns skills (1, (n, n + 1)) at its n-th decision, every three steps."""

    def __init__(self, as_tuple: bool = False) -> None:
        self.as_tuple = as_tuple
        self.episode_starts: list[bool] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        self.episode_starts.append(bool(episode_start[0]))
        if state is None:
            state = (np.array([1]), np.array([[0, 1]]), np.array([2]), np.zeros((1, 2, 4)))
        elif state[2][0] == 0:
            state = (state[0], state[1] + 1, np.array([2]), state[3])
        else:
            state = (state[0], state[1], state[2] - 1, state[3])
        return np.zeros((1, 2), np.int64), state if self.as_tuple else State(*state)


def read_gif(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Frames and how many milliseconds each is shown."""
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return frames, durations


class TestRecordEpisode:
    @pytest.mark.parametrize("as_tuple", [False, True])
    def test_summary_tells_what_happened(self, tmp_path: Path, as_tuple: bool) -> None:
        model = SkilledModel(as_tuple)
        summary = record_episode(model, CountingGame(), tmp_path / "new" / "episode.gif")
        assert summary.n_steps == EPISODE_LENGTH
        assert summary.episode_return == EPISODE_LENGTH * 0.5
        assert summary.success is True
        assert summary.finished
        assert summary.choices == (SkillChoice(0, 1, (0, 1)), SkillChoice(3, 1, (1, 2)), SkillChoice(6, 1, (2, 3)))
        assert summary.gif == tmp_path / "new" / "episode.gif"
        assert model.episode_starts == [True] + [False] * (EPISODE_LENGTH - 1)

    def test_one_frame_per_step_and_a_long_last_one(self, tmp_path: Path) -> None:
        record_episode(SkilledModel(), CountingGame(), tmp_path / "episode.gif", fps=5)
        frames, durations = read_gif(tmp_path / "episode.gif")
        assert len(frames) == EPISODE_LENGTH + 1
        assert durations == [200] * EPISODE_LENGTH + [2000]

    def test_last_picture_is_the_end_and_not_the_next_start(self, tmp_path: Path) -> None:
        """A ``DummyVecEnv`` has already reset the game when ``step`` returns."""
        record_episode(SkilledModel(), DummyVecEnv([CountingGame]), tmp_path / "episode.gif")
        frames, _ = read_gif(tmp_path / "episode.gif")
        shown = [int(frame[5, 5, 0]) for frame in frames]
        assert shown == pytest.approx([brightness(time) for time in range(EPISODE_LENGTH + 1)], abs=3)

    def test_bar_lights_up_when_skills_are_assigned(self, tmp_path: Path) -> None:
        record_episode(SkilledModel(), CountingGame(), tmp_path / "episode.gif")
        frames, _ = read_gif(tmp_path / "episode.gif")
        picture_height = frames[0].shape[1]  # the game's picture is square
        bar = [frame[picture_height + 5, 3].astype(int) for frame in frames]
        lit = [step for step, colour in enumerate(bar) if colour[0] - colour[2] > 60]
        assert lit == [0, 3, 6]

    def test_environment_is_left_as_it_was(self, tmp_path: Path) -> None:
        game = CountingGame()
        venv = DummyVecEnv([lambda: game])
        record_episode(SkilledModel(), venv, tmp_path / "episode.gif")
        assert venv.envs == [game]

    def test_seed_reaches_the_game(self, tmp_path: Path) -> None:
        game = CountingGame()
        record_episode(SkilledModel(), game, tmp_path / "episode.gif", seed=11)
        assert game.seeds[0] == 11

    def test_stops_at_max_steps(self, tmp_path: Path) -> None:
        summary = record_episode(SkilledModel(), CountingGame(), tmp_path / "episode.gif", max_steps=2)
        assert (summary.n_steps, summary.finished, summary.success) == (2, False, None)
        assert len(read_gif(tmp_path / "episode.gif")[0]) == 3

    def test_reward_is_the_games_own_under_normalisation(self, tmp_path: Path) -> None:
        venv = VecNormalize(DummyVecEnv([lambda: Monitor(CountingGame())]))
        venv.training = False
        venv.ret_rms.var = np.array(100.0)
        summary = record_episode(SkilledModel(), venv, tmp_path / "episode.gif")
        assert summary.episode_return == EPISODE_LENGTH * 0.5

    def test_game_without_success_and_model_without_skills(self, tmp_path: Path) -> None:
        model = PPO("MlpPolicy", CountingGame(), n_steps=8, batch_size=8)
        summary = record_episode(model, CountingGame(reports_success=False), tmp_path / "episode.gif")
        assert summary.success is None
        assert summary.choices == ()

    def test_refuses_what_it_cannot_record(self, tmp_path: Path) -> None:
        out = tmp_path / "episode.gif"
        with pytest.raises(ValueError, match=r"one environment, got a VecEnv of 2"):
            record_episode(SkilledModel(), DummyVecEnv([CountingGame] * 2), out)
        with pytest.raises(ValueError, match=r'render_mode="rgb_array", got render_mode=None'):
            record_episode(SkilledModel(), CountingGame(render_mode=None), out)
        with pytest.raises(ValueError, match="must be positive"):
            record_episode(SkilledModel(), CountingGame(), out, max_steps=0)
        assert not out.exists()


class TestReadSkills:
    def test_reads_named_and_plain_tuples(self) -> None:
        state = (np.array([2]), np.array([[3, 0]]), np.array([4]), np.zeros((1, 2, 8)))
        assert read_skills(state) == read_skills(State(*state)) == Skills(2, (3, 0))

    @pytest.mark.parametrize(
        "state", [None, (), (np.zeros((1, 1, 8)), np.zeros((1, 1, 8))), (np.array([1, 1]), np.zeros((2, 2), int))]
    )
    def test_other_states_hold_no_skills(self, state: Any) -> None:
        assert read_skills(state) is None


class TestCaptions:
    def test_frames_of_a_team_have_one_size(self) -> None:
        picture = np.zeros((50, 80, 3), np.uint8)
        names = tuple(f"agent {index}" for index in range(9))
        few = draw_frame(picture, Caption(0, 0.0, Skills(0, (0,) * 9), True, ""), names)
        many = draw_frame(picture, Caption(999, -1234.5, Skills(12, (10,) * 9), False, "no success"), names)
        assert few.shape == many.shape
        assert few.shape[1] % 80 == 0

    def test_same_skill_has_the_same_colour_for_every_agent(self) -> None:
        picture = np.zeros((50, 420, 3), np.uint8)

        def colours(skills: tuple[int, ...]) -> set[tuple[int, ...]]:
            frame = draw_frame(picture, Caption(0, 0.0, Skills(0, skills), False, ""), ("a", "b"))
            return {tuple(pixel) for pixel in frame[50:].reshape(-1, 3).tolist()}

        assert colours((1, 1)) == colours((1, 1))
        assert (86, 180, 233) in colours((1, 0)) & colours((0, 1))
        assert (86, 180, 233) not in colours((0, 0))

    def test_absent_agents_show_no_skill(self) -> None:
        picture = np.zeros((50, 420, 3), np.uint8)

        def drawn(skill: int, present: tuple[bool, ...] | None) -> bytes:
            return draw_frame(picture, Caption(0, 0.0, Skills(0, (1, skill)), False, "", present), ("a", "b")).tobytes()

        assert drawn(2, (True, False)) == drawn(3, (True, False))
        assert drawn(2, None) == drawn(2, (True, True)) != drawn(3, None)

    def test_refuses_other_pictures(self) -> None:
        with pytest.raises(ValueError, match=r"\(height, width, 3\), got float64 \(5, 5\)"):
            draw_frame(np.zeros((5, 5)), Caption(0, 0.0, None, False, ""), ())  # type: ignore[arg-type]


class TestLearningCurve:
    @pytest.mark.parametrize(
        ("n_successes", "n_episodes", "expected"),
        [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (50, 100, (0.4038, 0.5962)), (95, 100, (0.8882, 0.9785))],
    )
    def test_wilson_interval(self, n_successes: int, n_episodes: int, expected: tuple[float, float]) -> None:
        assert wilson_interval(n_successes, n_episodes) == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize(("n_successes", "n_episodes"), [(0, 0), (-1, 5), (6, 5)])
    def test_wilson_interval_refuses_impossible_counts(self, n_successes: int, n_episodes: int) -> None:
        with pytest.raises(ValueError, match="must hold"):
            wilson_interval(n_successes, n_episodes)

    def test_success_rate_and_its_band_are_drawn(self, tmp_path: Path) -> None:
        successes = np.array([[False] * 10, [True] * 5 + [False] * 5, [True] * 10])
        path = write_evaluations(tmp_path, successes.astype(float), successes=successes)
        axes = Figure().add_subplot()
        plots._draw(axes, plots._read_evaluations(path), "A title", 0.9)
        line = next(line for line in axes.lines if line.get_label() == "success rate")
        assert line.get_ydata().tolist() == [0.0, 0.5, 1.0]
        assert line.get_xdata().tolist() == [1000, 2000, 3000]
        target = next(line for line in axes.lines if line.get_label() == "target 0.9")
        assert list(target.get_ydata()) == [0.9, 0.9]
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx(1.0)
        assert wilson_interval(0, 10)[1] == pytest.approx(band[band < 0.5].max(), abs=0.05)
        assert axes.get_title() == "A title"
        assert axes.get_xlabel() == "environment steps"

    def test_no_target_is_drawn_that_nobody_set(self, tmp_path: Path) -> None:
        path = write_evaluations(tmp_path, np.ones((3, 10)), successes=np.ones((3, 10), bool))
        axes = Figure().add_subplot()
        plots._draw(axes, plots._read_evaluations(path), None, None)
        assert [line.get_label() for line in axes.lines] == ["success rate"]

    def test_return_where_no_success_is_reported(self, tmp_path: Path) -> None:
        results = np.random.default_rng(0).normal(5.0, 1.0, size=(3, 50))
        curve = plots._read_evaluations(write_evaluations(tmp_path, results))
        assert not curve.is_success
        assert curve.mean == pytest.approx(results.mean(axis=1))
        standard_error = results.std(axis=1) / np.sqrt(50)
        assert curve.low == pytest.approx(curve.mean - 1.96 * standard_error, abs=0.1)
        assert curve.high == pytest.approx(curve.mean + 1.96 * standard_error, abs=0.1)

    def test_success_in_some_evaluations_only_falls_back_to_the_return(self, tmp_path: Path) -> None:
        path = write_evaluations(tmp_path, np.ones((3, 10)), successes=np.ones((2, 10), bool))
        assert not plots._read_evaluations(path).is_success

    @pytest.mark.parametrize("with_success", [False, True])
    def test_writes_a_picture(self, tmp_path: Path, with_success: bool) -> None:
        extra = {"successes": np.ones((3, 10), bool)} if with_success else {}
        path = write_evaluations(tmp_path, np.ones((3, 10)), **extra)
        out = plot_learning_curve(path, tmp_path / "new" / "curve.png", "title")
        with Image.open(out) as image:
            assert image.format == "PNG"
            assert image.width > 600

    def test_refuses_a_file_without_evaluations(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            plot_learning_curve(tmp_path / "absent.npz", tmp_path / "curve.png")
        path = tmp_path / "evaluations.npz"
        np.savez(path, timesteps=[], results=[])
        with pytest.raises(ValueError, match="holds no evaluation"):
            plot_learning_curve(path, tmp_path / "curve.png")


def write_evaluations(folder: Path, results: np.ndarray, **extra: np.ndarray) -> Path:
    """The file that ``EvalCallback`` writes, with an evaluation every 1,000 steps."""
    path = folder / "evaluations.npz"
    timesteps = 1000 * np.arange(1, len(results) + 1)
    np.savez(path, timesteps=timesteps, results=results, ep_lengths=np.ones_like(results), **extra)
    return path


def test_evaluations_are_on_the_disk_before_they_take_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    evaluation = ReportingEvalCallback(
        random_team_vec_env(2), StopRequest(), n_eval_episodes=2, eval_freq=12, log_path=str(tmp_path)
    )
    make_model().learn(48, evaluation)
    assert done == ["fsync", "replace"]
    assert (tmp_path / "evaluations.npz").is_file()


class TestOptionalPackages:
    def test_absent_package_names_the_extra(self) -> None:
        with pytest.raises(ImportError, match=r'Doing it needs .*no_such_package.*pip install "hmasd-sb3\[demo\]"'):
            import_optional("no_such_package.part", purpose="Doing it", extra="demo")

    def test_errors_inside_an_installed_package_are_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_package.py").write_text("import something_that_is_missing\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(ModuleNotFoundError, match="something_that_is_missing"):
            import_optional("broken_package", purpose="Doing it", extra="demo")
