"""Two processes end where one does, and agree on everything; launched once, for all the tests here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ddp_run.py")
spec = importlib.util.spec_from_file_location("ddp_run", SCRIPT)
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def ranks(folder):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*launch, str(folder), "2"], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return runs.equal_to_one(1)


def assert_same(a, b, **tolerance):
    for key, value in a["weights"].items():
        torch.testing.assert_close(value, b["weights"][key], **tolerance)
    assert (a["step"], len(a["history"])) == (b["step"], len(b["history"]))
    for row, other in zip(a["history"], b["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-9) if tolerance["rtol"] else row == other
    if a["sampler"] is not None:
        torch.testing.assert_close(a["sampler"], b["sampler"], **tolerance)


CASES = [
    "plain",
    "momentum, clipping, penalty",
    "sum",
    "weights",
    "two passes",
    "mixing transform",
    "told sampler",
    "early stopping",
    "stopped by one",
    "loader",
    "frozen",
]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(ranks, alone, case):
    """Batches of 4, 4, 4 and 1 samples, two to a step: one process has no sample of the last one."""
    for rank in ranks:
        assert_same(rank["equal to one"][case], alone[case], rtol=1e-9, atol=1e-12)
    assert not torch.equal(alone[case]["weights"]["0.bias"], runs.network()[0].bias)


def test_all_cases_are_looked_at(alone):
    assert sorted(alone) == sorted(CASES)
    assert alone["early stopping"]["step"] < 60
    assert alone["stopped by one"]["step"] == 3


@pytest.mark.parametrize("case", ["batch norm", "shuffling loader, dropout", "no seed", "half", "whole", "resumed"])
def test_processes_agree(ranks, case):
    a, b = (rank["agreed"][case] for rank in ranks)
    assert_same(a, b, rtol=0, atol=0)


def test_processes_share_out_every_epoch_of_a_shuffling_loader(ranks):
    every = runs.table()[0][:, 0].tolist()
    epochs = zip(*(rank["agreed"]["shuffling loader, dropout"]["rows"] for rank in ranks), strict=True)
    for first, second in epochs:
        assert sorted({*first, *second}) == sorted(every)
        assert len(set(first)) == 7


def test_gradients_are_sent_once_a_step(ranks):
    assert [rank["unsynced"] for rank in ranks] == [6, 6]


def test_a_run_that_was_cut_ends_in_the_same_bits(ranks):
    """With dropout, whose masks each process draws for itself."""
    for rank in ranks:
        assert_same(rank["agreed"]["whole"], rank["agreed"]["resumed"], rtol=0, atol=0)


def test_divergence_is_an_error_in_every_process(ranks):
    assert all(rank["diverges"] for rank in ranks)


def test_checkpoints_are_written_once(ranks, folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "cut", "cut.previous", "rank0.pt", "rank1.pt", "whole", "whole.previous"
    ]  # fmt: skip


def test_a_checkpoint_of_two_processes_is_refused_by_one(ranks, folder):
    model = runs.network(torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match="the checkpoint holds 2 processes, this run has 1"):
        runs.run(1, model=model, checkpoint=folder / "whole", resume=True)
