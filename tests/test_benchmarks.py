"""The programs in ``benchmarks/``: what they count, how they put it into tables, and that each of them runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import arithmetic  # noqa: E402
import long_run  # noqa: E402
import measuring  # noqa: E402
import profile_training  # noqa: E402
import scaling  # noqa: E402
from synthetic_teams import EPISODE_LENGTH, synthetic_teams  # noqa: E402

from hmasd_sb3 import HMASD  # noqa: E402
from hmasd_sb3.policies import RandomCoordinator  # noqa: E402


def small_model(**kwargs: Any) -> HMASD:
    settings = {"n_steps": 10, "batch_size": 40, "skill_interval": 5, "n_epochs": 1, "skill_n_epochs": 1, "seed": 0}
    settings |= {"discriminator_n_updates": 1, "target_kl": None, "skill_target_kl": None, "sequence_length": 5}
    return HMASD("MlpPolicy", synthetic_teams(4, 3), device="cpu", **{**settings, **kwargs})


# ------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("network", ["coordinator", "actor", "critic", "discriminators"])
def test_operations_of_an_update_are_those_that_torch_counts(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmasd_sb3.hmasd as algorithm

    model = small_model()
    original = getattr(algorithm, f"update_{network}")
    counted: dict[str, int] = {}

    def update(*args: Any) -> Any:
        # Attention in plain products, as the counter knows no kernel of it on this device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            stats = original(*args)
        counted["flops"] = counter.get_total_flops()
        return stats

    monkeypatch.setattr(algorithm, f"update_{network}", update)
    model.learn(40)
    n_assignments = int(model.rollout_buffer.assigned.sum())
    assert n_assignments == 8
    assert arithmetic.update_flops(model, n_assignments)[network] == counted["flops"]


def test_operations_of_acting_and_of_values_are_those_that_torch_counts() -> None:
    model = small_model()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.start_cycle(40)
        model.enable_data_collection()
        while not model.should_sync_update():
            decision = model.decide()
            assert model.env is not None
            model.store_step(decision, *model.env.step(model.policy.to_env_actions(decision.actions)))
    mine = arithmetic.acting_flops(model, int(model.rollout_buffer.assigned.sum()))
    # Heads and attention over growing prefixes are counted on average.
    assert sum(mine.values()) == pytest.approx(counter.get_total_flops(), rel=0.05)
    counts = [arithmetic.evaluation_flops(model, assigned) for assigned in (8, 16)]
    assert 0 < counts[0] < counts[1]


def test_other_coordinators_are_refused() -> None:
    model = small_model(policy_kwargs={"coordinator_class": RandomCoordinator})
    with pytest.raises(ValueError, match="TransformerCoordinator of one block"):
        arithmetic.update_flops(model, 8)


def test_forward_and_back_is_three_times_forward_but_for_the_first_layer() -> None:
    inner = [arithmetic.Product(8, 4)]
    assert arithmetic.forward_flops(inner, 10) == 10 * 2 * 8 * 4
    assert arithmetic.training_flops(inner, 10) == 3 * arithmetic.forward_flops(inner, 10)
    assert arithmetic.training_flops([arithmetic.Product(8, 4, first=True)], 10) == 2 * arithmetic.forward_flops(inner, 10)


def test_multiplication_rate_is_a_speed() -> None:
    assert arithmetic.multiplication_rate(16, 16, 16, repeats=1, seconds=0.001) > 1e6


# ------------------------------------------------------------------ clocks, tables, files


def test_clocks_count_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profile_training.time, "process_time", lambda: now[0])
    clocks = profile_training.Clocks()

    def work(seconds: float) -> None:
        now[0] += seconds

    inner = clocks.timed("inner", lambda: work(2.0))

    def around() -> None:
        work(1.0)
        inner()
        work(4.0)

    clocks.timed("outer", around)()
    work(8.0)  # under no clock
    clocks.timed(lambda part: f"{part}?", lambda: work(16.0))()
    assert dict(clocks.seconds) == {"outer": 5.0, "inner": 2.0, "?": 16.0}


def test_clocks_survive_errors() -> None:
    clocks = profile_training.Clocks()

    def broken() -> None:
        raise KeyError("as it should")

    with pytest.raises(KeyError):
        clocks.timed("broken", broken)()
    assert clocks._running == []


def test_tables() -> None:
    assert measuring.table(["a", "b"], [["x", "1"], ["y", "2"]]) == ["| a | b |", "|---|---:|", "| x | 1 |", "| y | 2 |"]
    with pytest.raises(ValueError, match="has 2 columns, but a row has 1"):
        measuring.table(["a", "b"], [["x"]])


def test_results_are_kept_for_a_run_with_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert measuring.Results(path, {"rounds": 1}, resume=True).measured("one", lambda: [1]) == [1]
    again = measuring.Results(path, {"rounds": 1}, resume=True)
    assert again.measured("one", lambda: pytest.fail("measured twice")) == [1]
    assert again.measured("two", lambda: 2) == 2
    assert set(json.loads(path.read_text())["parts"]) == {"one", "two"}
    with pytest.raises(SystemExit, match=r"measured with \{'rounds': 1\}, not with \{'rounds': 2\}"):
        measuring.Results(path, {"rounds": 2}, resume=True)
    assert measuring.Results(path, {"rounds": 2}, resume=False).measured("one", lambda: [3]) == [3]


def test_threads_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert measuring.thread_environment("1")["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in measuring.thread_environment(measuring.DEFAULT_THREADS)


def test_growth_is_flagged_beyond_linear_alone() -> None:
    growth = scaling.exponents([2, 4, 8, 16], [1.0, 2.0, 4.0, 16.0])
    assert growth[0] is None
    assert growth[1:] == pytest.approx([1.0, 1.0, 2.0])
    assert [scaling.worse_than_linear(exponent) for exponent in growth] == [False, False, False, True]
    points = {n: {"collecting": 0.0, "learning": value} for n, value in zip([2, 4, 8, 16], [1.0, 2.0, 4.0, 16.0], strict=True)}
    text = "\n".join(scaling.report("agents", points))
    assert "2.00 (!)" in text
    assert "Worse than linear at 16 agents" in text
    assert "(!)" not in "\n".join(scaling.report("envs", points))


def test_ratios_are_taken_within_a_round() -> None:
    """The machine was busy in the second round."""
    pytest.importorskip("sb3_contrib")
    import throughput

    rates = {
        "HMASD": {"wall": [40.0, 6.0, 30.0], "cpu": [40.0, 30.0, 32.0]},
        throughput.BASE: {"wall": [10.0, 3.0, 10.0], "cpu": [10.0, 10.0, 8.0]},
    }
    own, base = throughput.rows(rates, {"HMASD": {"peak": 321.4}})
    assert own == ["HMASD", "6", "30", "40", "32", "3.00", "4.00", "321"]
    assert base == [throughput.BASE, "3", "10", "10", "10", "1.00", "1.00", "–"]
    assert throughput.SETTINGS["32x32"].rollout == 1024


def test_samples_of_a_long_run() -> None:
    assert long_run.samples(937)[0] == long_run.FIRST_UPDATES - 1
    assert long_run.samples(937)[-1] == 936
    assert len(long_run.samples(937)) == 10
    assert long_run.samples(6) == [4, 5]
    assert long_run.growth([9.0, 9.0, 9.0, 9.0, 10.0, 12.0, 11.5]) == 1.5


def test_a_long_run_needs_more_than_the_first_updates() -> None:
    with pytest.raises(ValueError, match="too few"):
        long_run.train("cheap", 16_000)


def test_synthetic_teams_end_episodes_as_stable_baselines_expects() -> None:
    venv = synthetic_teams(3, 4)
    venv.reset()
    actions = th.zeros(3, 4, dtype=th.long).numpy()
    for step in range(1, EPISODE_LENGTH + 1):
        observation, rewards, dones, infos = venv.step(actions)
        assert (rewards == 1.0).all()
        assert dones.all() == (step == EPISODE_LENGTH)
    assert observation["obs"].shape == (3, 4, 16)
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"]["state"].shape == (32,) for info in infos)


# ------------------------------------------------------------------ the programs themselves

RUNS = {
    "throughput": ["--setting", "32x32", "--rounds", "1", "--iterations", "1"],
    "profile_training": ["--setting", "default", "--iterations", "1"],
    "scaling": ["--sweep", "agents", "interval", "--points", "2", "--updates", "1"],
    "long_run": ["--setting", "cheap", "--total-timesteps", "20000", "--limit-mb", "50"],
}


def run_program(program: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARKS / f"{program}.py"), *RUNS[program], *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("program", list(RUNS))
def test_program_writes_table_numbers_and_plot(program: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_program(program, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    name = program.removesuffix("_training")
    written = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert done.stdout == written
    assert "|---|---:|" in written
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["parts"]
    assert (tmp_path / f"{name}.png").stat().st_size < 100_000


@pytest.mark.slow
def test_a_long_run_whose_memory_grows_fails(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_program("long_run", "--limit-mb", "-100", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "Memory grew too much" in done.stdout
