"""An epoch serves what it should, in an order that can be resumed, from tables and from loaders."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, TensorDataset

from wellposed.train import Tensors, batches
from wellposed.train.batches import Batch, Feed, as_batch, as_tensors
from wellposed.train.checkpoint import random_state, set_random_state
from wellposed.train.processes import shard, shares

CPU = torch.device("cpu")


def feed(data, sampler=None, seed=3, size=8):
    return Feed(data, size, sampler, torch.Generator().manual_seed(seed), CPU)


def served(epoch):
    return [[None if f is None else f.clone() for f in batch.fields()] for batch in epoch]


def same(a, b):
    return len(a) == len(b) and all(
        (f is None and g is None) or torch.equal(f, g)
        for x, y in zip(a, b, strict=True)
        for f, g in zip(x, y, strict=True)
    )


class Counting(Sampler[int]):
    """Serves the even samples in the first epoch, the odd ones in the second, shuffled by its own generator."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(9)
        self.begun = 0

    def __iter__(self):
        self.begun += 1
        order = torch.randperm(13, generator=self.generator) * 2 + (self.begun + 1) % 2
        return iter(order.tolist())

    def __len__(self):
        return 13

    def state_dict(self):
        return {"begun": self.begun, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.begun = state["begun"]
        self.generator.set_state(state["generator"])


class Fixed(Sampler[int]):
    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


class Noisy(Dataset):
    """Draws from every global generator for each sample."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table[0])

    def __getitem__(self, i):
        return self.table[0][i] + torch.randn(()) + random.random() + np.random.rand(), self.table[1][i]


class TestTables:
    def test_an_epoch_is_a_permutation_in_batches(self, table):
        x, y = table
        group, weight = torch.arange(26) * 2, torch.rand(26)
        order = torch.randperm(26, generator=torch.Generator().manual_seed(3))
        parts = served(feed(Tensors(x, y, group, weight)).epoch())
        assert [len(p[1]) for p in parts] == [8, 8, 8, 2]
        for part, i in zip(parts, order.split(8), strict=True):
            for field, whole in zip(part, (x, y, torch.arange(26), group, weight), strict=True):
                assert torch.equal(field, whole[i])

    @pytest.mark.parametrize("block", [1, 8 * 6 * 4, 2 * 8 * 6 * 4 + 1, 10**6])
    def test_blocks_of_any_size_serve_the_same(self, table, monkeypatch, block):
        whole = served(feed(table).epoch())
        monkeypatch.setattr(batches, "BLOCK_BYTES", block)
        assert same(whole, served(feed(table).epoch()))

    def test_a_sampler_says_which_and_in_what_order(self, table):
        parts = served(feed(table, sampler=Fixed([4, 2, 2, 25])).epoch())
        assert torch.equal(parts[0][2], torch.tensor([4, 2, 2, 25]))
        assert torch.equal(parts[0][0], table[0][[4, 2, 2, 25]])

    def test_a_sampler_that_serves_nothing_is_refused(self, table):
        with pytest.raises(ValueError, match="served no sample"):
            feed(table, sampler=Fixed([])).epoch()

    def test_lengths_and_negative_weights_are_refused(self, table):
        with pytest.raises(ValueError, match="group has 3 rows, inputs have 26"):
            Tensors(*table, group=torch.arange(3))
        with pytest.raises(ValueError, match="negative"):
            Tensors(*table, weight=-torch.ones(26))

    def test_pairs_of_tensors_only(self, table):
        assert as_tensors(table) is not None
        assert as_tensors(list(table)) is None
        assert as_tensors((table, table)) is None

    def test_steps_count_last_batches_and_accumulation(self, table):
        assert feed(table).steps(epochs=3, accumulate=1) == 12
        assert feed(table).steps(epochs=3, accumulate=3) == 6

    def test_steps_follow_a_sampler_whose_epochs_differ(self, table):
        class Halving(Counting):
            def epoch_length(self, epoch):
                return 26 if epoch == 0 else 13

        assert feed(table, Halving()).steps(epochs=3, accumulate=1) == 4 + 2 + 2
        assert feed(table, Counting()).steps(epochs=3, accumulate=1) == 6


class TestLoaders:
    def test_serve_their_own_batches(self, table):
        parts = served(feed(DataLoader(TensorDataset(*table), batch_size=5)).epoch())
        assert torch.equal(torch.cat([p[0] for p in parts]), table[0])
        assert parts[0][2:] == [None, None, None]

    def test_may_yield_dictionaries(self, table):
        x, y = table
        parts = list(feed([({"a": x[:4], "b": [x[4:8]]}, y[:4])]).epoch())
        assert torch.equal(parts[0].inputs["b"][0], x[4:8])

    def test_index_group_and_weight_follow_inputs_and_targets(self, table):
        item = (*table, torch.arange(26), torch.ones(26, dtype=torch.int64), torch.rand(26))
        assert as_batch(item).weight is item[4]
        assert as_batch(list(item[:3])).index is item[2]

    @pytest.mark.parametrize("item", [torch.ones(3), (torch.ones(3),), (1,) * 6])
    def test_other_items_are_refused(self, item):
        with pytest.raises(TypeError, match="a batch must be"):
            as_batch(item)

    def test_without_a_length_are_refused(self, table):
        with pytest.raises(TypeError, match="needs a length"):
            feed(table for _ in range(3))

    def test_refuse_a_sampler_that_is_not_theirs(self, table):
        sampler = Counting()
        with pytest.raises(ValueError, match="Counting serves in-memory data"):
            feed(DataLoader(TensorDataset(*table), sampler=RandomSampler(range(26))), sampler)
        feed(DataLoader(TensorDataset(*table), sampler=sampler), sampler)
        feed(DataLoader(TensorDataset(*table), batch_sampler=BatchSampler(sampler, 3, False)), sampler)


def sources(table):
    data = TensorDataset(*table)
    return {
        "table": lambda: feed(table),
        "table, sampler": lambda: feed(table, Counting()),
        "shuffled": lambda: feed(DataLoader(data, batch_size=5, shuffle=True)),
        "own generator": lambda: feed(DataLoader(data, 5, shuffle=True, generator=torch.Generator().manual_seed(4))),
        "own sampler": lambda: feed(DataLoader(data, batch_size=5, sampler=Counting())),
        "drawn samples": lambda: feed(DataLoader(Noisy(table), batch_size=5, shuffle=True)),
        "batch sampler": lambda: feed(
            DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, replacement=True), 5, False))
        ),
    }


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def draws():
    """One number from every generator there is."""
    return torch.rand(()).item(), random.random(), np.random.rand()


@pytest.mark.parametrize("name", list(sources((torch.zeros(26), torch.zeros(26)))))
@pytest.mark.parametrize("epochs", [0, 1])
def test_an_epoch_resumes_where_it_stopped(table, name, epochs):
    """What is left of an epoch, all later epochs and every draw beside them are the same bits."""
    make = sources(table)[name]
    seed_all(0)
    one = make()
    for _ in range(epochs):
        served(one.epoch())
    epoch = one.epoch()
    served(next(epoch) for _ in range(2))
    draws()
    state = one.state_dict(), one.generator.get_state(), random_state()
    sampler = one.sampler.state_dict() if one.sampler is not None else None
    rest = [served(epoch), draws(), served(one.epoch()), draws()]

    two = make()
    seed_all(77)
    two.generator.set_state(state[1])
    set_random_state(state[2])
    if sampler is not None:
        two.sampler.load_state_dict(sampler)
    two.load_state_dict(state[0])
    again = [served(two.epoch(skip=2)), draws(), served(two.epoch()), draws()]
    assert same(rest[0], again[0])
    assert rest[1] == again[1]
    assert same(rest[2], again[2])
    assert rest[3] == again[3]


class TestShards:
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("n", [1, 2, 7])
    def test_averaged_over_processes_give_the_figure_of_the_whole(self, n, weighted, reduction):
        losses = torch.rand(n, dtype=torch.float64)
        weight = torch.rand(n, dtype=torch.float64) if weighted else None
        whole = Batch(losses, losses, weight=weight)

        def figure(batch):
            w = torch.ones_like(batch.inputs) if batch.weight is None else batch.weight
            total = (w * batch.inputs).sum()
            return total if reduction == "sum" else total / w.sum()

        pieces = [shard(whole, rank, 3, reduction) for rank in range(3)]
        assert all(len(piece) >= 1 for piece, _ in pieces)
        torch.testing.assert_close(sum(figure(piece) * share for piece, share in pieces) / 3, figure(whole))

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_shares_of_a_step_give_the_figure_of_the_joined_batch(self, weighted, reduction):
        losses = torch.rand(9, dtype=torch.float64)
        weight = torch.rand(9, dtype=torch.float64) if weighted else torch.ones(9, dtype=torch.float64)
        parts = [
            Batch(a, a, weight=w if weighted else None) for a, w in zip(losses.split(4), weight.split(4), strict=True)
        ]
        divided = [1.0] * 3 if reduction == "sum" else [w.sum() for w in weight.split(4)]
        each = [(a * w).sum() / d for a, w, d in zip(losses.split(4), weight.split(4), divided, strict=True)]
        total = sum(share * value for share, value in zip(shares(parts, reduction), each, strict=True))
        expected = (losses * weight).sum() / (1.0 if reduction == "sum" else weight.sum())
        torch.testing.assert_close(total, expected)
