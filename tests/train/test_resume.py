"""A run that is killed and resumed ends in the same bits as one that was not."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wellposed.train import checkpoint

SCRIPT = Path(__file__).with_name("interrupted.py")
spec = importlib.util.spec_from_file_location("interrupted", SCRIPT)
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


def assert_same(a, b):
    """Python's own generator is left out: the suite's type checks draw from it. The killed process below has none."""
    assert runs.differences(a, b, without=python_state) == []


python_state = tuple(f"/random/python/{place}" for place in ("0", "2", *(f"1/{k}" for k in range(625))))


def draws():
    return torch.rand(2).tolist(), np.random.rand()


def whole(path, kind, **options):
    trainer = runs.build(path, kind, **options)
    trainer.fit(runs.data(kind), runs.valid())
    return trainer, draws()


def interrupted(path, kind, step, **options):
    """The run up to the exception after ``step`` steps, then another one, made afresh, that goes on from the file."""
    with pytest.raises(KeyboardInterrupt):
        runs.build(path, kind, [runs.Interrupt(step)], **options).fit(runs.data(kind), runs.valid())
    np.random.seed(99)
    told = runs.Told()
    trainer = runs.build(path, kind, [told], **options)
    trainer.fit(runs.data(kind), runs.valid(), resume=True)
    assert told.steps[0] == step - 1
    return trainer, draws()


@pytest.mark.parametrize("step", [3, 6, 7, 13])
@pytest.mark.parametrize("kind", ["table", "sampler", "scheduler", "weights", "loader", "loader with a generator"])
def test_equals_the_uninterrupted_run(tmp_path, kind, step):
    """With dropout, batch norm, a random transform, a sampler with state, callbacks with state."""
    one, drawn = whole(tmp_path / "a", kind)
    two, again = interrupted(tmp_path / "b", kind, step)
    assert_same(one, two)
    assert drawn == again


@pytest.mark.parametrize("step", [4, 8, 11])
def test_equals_with_early_stopping(tmp_path, step):
    options = {"epochs": 30, "patience": 2}
    one, _ = whole(tmp_path / "a", "table", **options)
    two, _ = interrupted(tmp_path / "b", "table", step, **options)
    assert 2 < len(one.history) < 30
    assert_same(one, two)


@pytest.mark.parametrize("step", [2, 4])
def test_equals_with_accumulation_clipping_and_half_precision(tmp_path, step):
    options = {"accumulate": 2, "clip": 0.5, "precision": "16-mixed"}
    one, _ = whole(tmp_path / "a", "table", **options)
    two, _ = interrupted(tmp_path / "b", "table", step, **options)
    assert_same(one, two)


def test_equals_after_the_process_was_killed(tmp_path):
    """SIGKILL in mid-epoch; another process goes on and draws from Python's generator too."""
    program = [sys.executable, str(SCRIPT), str(tmp_path / "run"), "sampler"]
    options = {"capture_output": True, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    killed = subprocess.run([*program, "8"], check=False, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous"]
    assert checkpoint.load(tmp_path / "run")["clock"][:2] == [1, 7]
    resumed = subprocess.run(program, check=False, **options)
    assert resumed.stdout == "[] True 20\n", resumed.stderr


def test_of_a_finished_run_changes_nothing(tmp_path):
    for options in ({"epochs": 2}, {"epochs": 30, "patience": 2}):
        path = tmp_path / f"run{len(options)}"
        one, _ = whole(path, "table", **options)
        two = runs.build(path, "table", **options)
        two.fit(runs.data("table"), runs.valid(), resume=True)
        assert_same(one, two)


def test_of_a_run_stopped_inside_an_epoch_goes_on_as_if_it_had_not_been(tmp_path):
    class Stop:
        def on_step_end(self, trainer):
            trainer.stop = trainer.step == 8

    stopped = runs.build(tmp_path / "b", "sampler", [Stop()], checkpoint_every=None)
    stopped.fit(runs.data("sampler"), runs.valid())
    assert (stopped.step, len(stopped.history)) == (8, 2)
    assert checkpoint.load(tmp_path / "b")["clock"][:3] == [1, 8, 3]
    two = runs.build(tmp_path / "b", "sampler", checkpoint_every=None)
    two.fit(runs.data("sampler"), runs.valid(), resume=True)
    one, _ = whole(tmp_path / "a", "sampler", checkpoint_every=None)
    assert_same(one, two)


def test_with_more_epochs_goes_on(tmp_path):
    whole(tmp_path / "a", "table", epochs=2)
    longer = runs.build(tmp_path / "a", "table", epochs=3)
    assert len(longer.fit(runs.data("table"), runs.valid(), resume=True)) == 3


def test_by_hand_from_a_state_equals_too(tmp_path):
    one, _ = whole(tmp_path / "a", "table")
    with pytest.raises(KeyboardInterrupt):
        runs.build(tmp_path / "b", "table", [runs.Interrupt(8)]).fit(runs.data("table"), runs.valid())
    two = runs.build(tmp_path / "c", "table")
    two.load_state_dict(checkpoint.load(tmp_path / "b"))
    two.fit(runs.data("table"), runs.valid())
    assert_same(one, two)


def test_without_a_file_starts_from_the_beginning(tmp_path):
    one, _ = whole(tmp_path / "a", "table")
    two = runs.build(tmp_path / "b", "table")
    two.fit(runs.data("table"), runs.valid(), resume=True)
    assert_same(one, two)


def test_falls_back_to_the_checkpoint_before_and_says_so(tmp_path):
    path = tmp_path / "b"
    one, _ = whole(tmp_path / "a", "table")
    with pytest.raises(KeyboardInterrupt):
        runs.build(path, "table", [runs.Interrupt(8)]).fit(runs.data("table"), runs.valid())
    path.write_bytes(path.read_bytes()[:-100])
    two = runs.build(path, "table")
    with pytest.warns(UserWarning, match=r"checksum does not match.*the checkpoint before it is used"):
        two.fit(runs.data("table"), runs.valid(), resume=True)
    assert_same(one, two)


def test_of_another_run_is_refused(tmp_path):
    whole(tmp_path / "a", "table")
    other = runs.build(tmp_path / "a", "scheduler")
    with pytest.raises(ValueError, match=r"the checkpoint holds \d parts, this run has \d"):
        other.fit(runs.data("scheduler"), runs.valid(), resume=True)
