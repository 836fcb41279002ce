"""The log that a training taken up again goes on with."""

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Image, Logger

from hmasd_sb3.monitoring.metrics_log import JsonLinesOutput, ResumedTensorBoardOutput


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def lines_of(path: Path) -> list[dict[str, object]]:
    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_line_per_dump_readable_at_once(path: Path) -> None:
    output = JsonLinesOutput(path)
    logger = Logger(None, [output])
    for step in (10, 20):
        logger.record("train/loss", np.float32(0.5))
        logger.record("time/total", step)
        logger.record("hidden", 1, exclude="json")
        logger.dump(step)
        assert lines_of(path)[-1] == {"step": step, "time/total": step, "train/loss": 0.5}
    assert len(lines_of(path)) == 2


def test_numbers_that_json_lacks_are_told_apart(path: Path) -> None:
    logger = Logger(None, [JsonLinesOutput(path)])
    for name, value in {"a": float("nan"), "b": np.inf, "c": np.float64("-inf"), "d": th.tensor([1.0, np.nan])}.items():
        logger.record(name, value)
    logger.dump(1)
    assert lines_of(path) == [{"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": [1.0, "NaN"]}]


def test_texts_arrays_and_pictures(path: Path) -> None:
    logger = Logger(None, [JsonLinesOutput(path)])
    logger.record("text", 'with "quotes"\nand lines')
    logger.record("array", np.array([[1, 2]]))
    logger.record("flag", True)
    logger.record("picture", Image(np.zeros((2, 2, 3)), "HWC"), exclude="stdout")
    logger.dump(1)
    assert lines_of(path) == [{"step": 1, "text": 'with "quotes"\nand lines', "array": [[1, 2]], "flag": True}]


def test_going_back_leaves_no_line_out_and_none_twice(path: Path) -> None:
    first = JsonLinesOutput(path)
    first.write({"x": 1}, {}, 1)
    state = first.state_dict()
    first.write({"x": 2}, {}, 2)
    with path.open("ab") as file:
        file.write(b'{"step": 3, "x"')  # a line that a crash broke off
    second = JsonLinesOutput(path)
    second.load_state_dict(json.loads(json.dumps(state)))
    second.write({"x": 20}, {}, 2)
    assert [line["x"] for line in lines_of(path)] == [1, 20]
    assert second.state_dict() == {"position": path.stat().st_size, "waiting": []}


def test_a_log_that_lost_lines_is_gone_on_with_and_said_so(path: Path) -> None:
    first = JsonLinesOutput(path)
    first.write({"x": 1}, {}, 1)
    length = path.stat().st_size
    first.write({"x": 2}, {}, 2)
    state = first.state_dict()
    with path.open("r+b") as file:
        file.truncate(length + 5)
    second = JsonLinesOutput(path)
    with pytest.warns(UserWarning, match=rf"is {length + 5} bytes long and was {state['position']}"):
        second.load_state_dict(state)
    second.write({"x": 3}, {}, 3)
    assert [line["x"] for line in lines_of(path)] == [1, 3]


def test_a_whole_log_is_gone_on_with_in_silence(path: Path) -> None:
    first = JsonLinesOutput(path)
    first.write({"x": 1}, {}, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        JsonLinesOutput(path).load_state_dict(first.state_dict())
    assert len(lines_of(path)) == 1


def test_a_position_that_is_none_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        JsonLinesOutput(path).load_state_dict({"position": -1})


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for value, steps in ((1.0, (10, 20, 30)), (2.0, (30, 40))):
        output = ResumedTensorBoardOutput(tmp_path, steps[0] if value == 2.0 else 1)
        for step in steps:
            output.write({"x": value}, {"x": ()}, step)
        output.close()
        time.sleep(1.1)  # files are told apart, and read in order, by the second in their name
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]


def test_lines_wait_while_the_disk_is_full(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards: a line of the log that ended hours of training; half a line; a line that a resumed run misses."""
    output = JsonLinesOutput(path)
    output.write({"a": 1.0}, {}, 10)
    file, length = output._file, path.stat().st_size

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(file, name)

        def write(self, data: bytes) -> int:
            file.write(data[:5])
            return 5

    output._file = Full()
    output.write({"a": 2.0}, {}, 20)
    output.write({"a": 3.0}, {}, 30)
    assert path.stat().st_size == length, "no half of a line"
    state = output.state_dict()
    assert state["position"] == length
    assert [record.levelname for record in caplog.records] == ["ERROR"], "said once"
    output._file = file
    output.write({"a": 4.0}, {}, 40)
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1.0, 2.0, 3.0, 4.0]
    output.close()
    resumed = JsonLinesOutput(path)
    resumed.load_state_dict(state)
    resumed.write({"a": 4.0}, {}, 40)
    resumed.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1.0, 2.0, 3.0, 4.0]
