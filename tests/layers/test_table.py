"""The network for tables: its embedding against a loop, a table of embeddings and finite differences."""

import copy
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from wellposed.layers import TableMLP
from wellposed.layers.table import BlockEmbedding
from wellposed.tables import Encoder, as_table, prepare

LAYOUT = (
    ("n", "number", 0, 2),
    ("c", "category", 2, 22),
    ("d", "date", 22, 25),
    ("small", "category", 25, 28),
    ("t", "text", 28, 60),
)


def inputs(n=7, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 60, generator=g, dtype=dtype)
    x[:, 2:22] = 0
    x[torch.arange(n), 2 + torch.randint(20, (n,), generator=g)] = 1
    return x


def slow_embedding(x, weight, runs):
    """Each run one number at a time: left alone, or a sum of rows of its own table."""
    rows = []
    for line in x.tolist():
        out, column, row = [], 0, 0
        for width, block in runs:
            part = line[column : column + width]
            if block:
                out += [sum(p * weight[row + i][k] for i, p in enumerate(part)) for k in range(len(weight[0]))]
                row += width
            else:
                out += part
            column += width
        rows.append(out)
    return torch.tensor(rows, dtype=torch.float64)


def test_embedding_equals_its_definition():
    runs = [(2, False), (20, True), (6, False), (32, True)]
    embed = BlockEmbedding([w for w, _ in runs], [b for _, b in runs], 3).double()
    x = inputs(dtype=torch.float64)
    torch.testing.assert_close(embed(x), slow_embedding(x, embed.weight.tolist(), runs))
    assert embed.out_features == 2 + 3 + 6 + 3


def test_a_one_hot_block_is_a_table_look_up_and_a_mixture_its_mean():
    embed = BlockEmbedding([20], [True], 4)
    table = nn.Embedding.from_pretrained(embed.weight.detach())
    index = torch.tensor([3, 0, 19])
    x = nn.functional.one_hot(index, 20).float()
    torch.testing.assert_close(embed(x), table(index))
    torch.testing.assert_close(embed(0.3 * x[:1] + 0.7 * x[1:2]), 0.3 * table(index[:1]) + 0.7 * table(index[1:2]))


def test_only_wide_categories_and_texts_are_embedded():
    model = TableMLP(LAYOUT, 3, embedding=16)
    assert model.embed.weight.shape == (52, 16)
    assert model.body[0].in_features == 2 + 16 + 6 + 16
    assert TableMLP(LAYOUT, 3, embedding=20).embed.weight.shape == (32, 20)
    assert isinstance(TableMLP(LAYOUT, 3, embedding=32).embed, nn.Identity)
    assert isinstance(TableMLP(60, 3).embed, nn.Identity)


def test_without_blocks_it_is_the_plain_perceptron_to_the_bit():
    torch.manual_seed(3)
    model = TableMLP(60, 2, width=8, depth=2, dropout=0.0, activation="gelu")
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(60, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    assert torch.equal(model(inputs()), plain(inputs()))


def test_gradients_reach_inputs_and_every_weight():
    torch.manual_seed(0)
    model = TableMLP(LAYOUT, 2, width=5, depth=1, dropout=0.0, embedding=4, activation="silu").double()
    x = inputs(2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(model, x)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_every_option_changes_the_outcome():
    x = inputs()

    def outputs(**options):
        torch.manual_seed(0)
        return TableMLP(LAYOUT, 3, **{"width": 16, **options})(x)

    base = outputs()
    variants = [
        {"width": 17},
        {"depth": 1},
        {"depth": 0},
        {"dropout": 0.5},
        {"embedding": 8},
        {"activation": "gelu"},
        {"activation": "silu"},
        {"norm": True},
    ]
    for options in variants:
        assert not torch.equal(outputs(**options), base), options
    assert base.shape == (7, 3)
    assert torch.equal(outputs(), base)


def test_dropout_modules_are_there_at_any_probability():
    model = TableMLP(4, 1, depth=3, dropout=0.0)
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 3
    x = torch.randn(5, 4)
    before = model(x)
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.9
    assert not torch.equal(model(x), before)
    model.eval()
    assert torch.equal(model(x), before)


def test_one_sample_an_empty_batch_and_a_linear_model():
    model = TableMLP(LAYOUT, 1, norm=True)
    assert model(inputs(1)).shape == (1, 1)
    assert model(inputs(0)).shape == (0, 1)
    linear = TableMLP(4, 2, depth=0)
    assert torch.equal(linear(torch.ones(1, 4)), linear.head(torch.ones(1, 4)))


def compile_whole():
    """The model and its gradient, traced whole, against itself untraced."""
    model = TableMLP(LAYOUT, 3, norm=True)
    values = []
    for called in (model, torch.compile(model, fullgraph=True, backend="eager")):
        torch.manual_seed(1)
        values.append(called(inputs()).square().mean())
    assert torch.equal(*values)
    parameters = list(model.parameters())
    for plain, traced in zip(*(torch.autograd.grad(v, parameters) for v in values), strict=True):
        assert torch.equal(plain, traced)


def test_it_compiles_into_one_graph():
    """In a process of its own: the checks of shapes and types that the tests run under cannot be traced."""
    code = f"import runpy; runpy.run_path({__file__!r})['compile_whole']()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_deepcopy_state_and_meta_device():
    model = TableMLP(LAYOUT, 3).eval()
    x = inputs()
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    with torch.device("meta"):
        empty = TableMLP(LAYOUT, 3).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x), model(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"outputs": 0}, "outputs=0"),
        ({"width": 0}, "width=0"),
        ({"depth": -1}, "depth=-1"),
        ({"embedding": 0}, "embedding=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"activation": "tanh"}, "activation='tanh'.*'relu', 'gelu', 'silu'"),
        ({"layout": 0}, "0 columns"),
        ({"layout": (("a", "number", 0, 2), ("b", "number", 3, 4))}, "'b' stands at 3 to 4, expected to start at 2"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TableMLP(**{"layout": 3, "outputs": 2, **options})


def test_it_learns_a_table_and_a_wide_category_through_its_embedding():
    rng = np.random.default_rng(0)
    level = rng.integers(0, 40, 600)
    frame = pd.DataFrame({"c": [f"l{k}" for k in level], "x": rng.normal(size=600), "y": (level % 2).astype(str)})
    prepared = prepare(as_table(frame), "y")
    encoder = Encoder.fit(prepared.frame, prepared.schema)
    x = torch.from_numpy(encoder.transform(prepared.frame))
    y = torch.from_numpy(prepared.target.cat.codes.to_numpy().astype(np.int64))
    torch.manual_seed(0)
    model = TableMLP(encoder.layout, 2, width=32, depth=1)
    assert model.embed.weight.shape == (40, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.97
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert TableMLP(again.layout, 2).embed.weight.shape == (40, 16)
