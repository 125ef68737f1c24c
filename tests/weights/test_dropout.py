"""Scheduled dropout: the rates, the layers it finds, and giving them back."""

import pytest
import torch
from torch import nn

from wellposed.train import Trainer
from wellposed.weights import ScheduledDropout


class DropPath(nn.Module):
    """Stochastic depth as other libraries write it."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return x


class StochasticDepth(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p


@pytest.mark.parametrize(
    ("mode", "rates"),
    [
        ("early", [0.4, 0.3, 0.0, 0.0, 0.0]),
        ("early-constant", [0.4, 0.4, 0.0, 0.0, 0.0]),
        ("late", [0.0, 0.0, 0.4, 0.4, 0.4]),
    ],
)
def test_rates(mode, rates):
    schedule = ScheduledDropout(0.4, mode, cutoff=0.2)
    assert [schedule.rate(t) for t in (0.0, 0.05, 0.2, 0.6, 1.0)] == pytest.approx(rates)


@pytest.mark.parametrize(("mode", "always"), [("early", 0.0), ("early-constant", 0.0), ("late", 0.3)])
def test_a_cutoff_of_zero(mode, always):
    assert {ScheduledDropout(0.3, mode, cutoff=0.0).rate(t) for t in (0.0, 0.5, 1.0)} == {always}


def test_every_kind_of_dropout_is_found_and_nothing_else():
    model = nn.ModuleList(
        [
            nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), DropPath(0.5), StochasticDepth(0.5),
            nn.MultiheadAttention(4, 2, dropout=0.5), nn.LSTM(2, 2, num_layers=2, dropout=0.5),
            nn.TransformerEncoderLayer(4, 2, dropout=0.5), nn.TripletMarginLoss(p=2.0), nn.LPPool1d(2, 3),
        ]
    )  # fmt: skip
    schedule = ScheduledDropout(0.2, "late", cutoff=0.0)
    schedule.set(model, 0.0)
    rates = [model[0].p, model[1].p, model[2].p, model[3].drop_prob, model[4].p, model[5].dropout, model[6].dropout]
    inner = model[7]
    rates += [inner.self_attn.dropout, inner.dropout.p, inner.dropout1.p, inner.dropout2.p]
    assert rates == [0.2] * 11
    assert model[8].p == 2.0
    assert model[9].norm_type == 2.0
    schedule.restore(model)
    assert model[3].drop_prob == model[6].dropout == inner.dropout1.p == 0.5


def test_rates_that_grow_with_depth_keep_their_ratio():
    model = nn.Sequential(DropPath(0.0), DropPath(0.1), DropPath(0.2))
    schedule = ScheduledDropout(0.5, "early", cutoff=0.5)
    schedule.set(model, 0.0)
    assert [layer.drop_prob for layer in model] == [0.0, 0.25, 0.5]
    schedule.set(model, 0.25)
    assert [layer.drop_prob for layer in model] == [0.0, 0.125, 0.25]
    schedule.set(model, 0.5)
    schedule.set(model, 0.0)
    assert [layer.drop_prob for layer in model] == [0.0, 0.25, 0.5]


def test_layers_at_zero_get_the_rate():
    model = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.0))
    ScheduledDropout(0.3, "late", cutoff=0.0).set(model, 0.5)
    assert [layer.p for layer in model] == [0.3, 0.3]


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ValueError, match="Linear has no dropout"):
        ScheduledDropout().set(nn.Linear(2, 2), 0.0)


def test_the_forward_pass_is_deterministic_after_the_cutoff():
    model, x = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)), torch.ones(3, 4)
    schedule = ScheduledDropout(0.5, cutoff=0.5)
    schedule.set(model, 0.0)
    assert not torch.equal(model(x), model(x))
    schedule.set(model, 0.5)
    assert torch.equal(model(x), model(x))


def test_a_resumed_run_remembers_the_models_own_rates():
    model = nn.Sequential(nn.Dropout(0.5))
    first, second = ScheduledDropout(), ScheduledDropout()
    first.set(model, 0.0)
    second.set(model, 0.0)
    second.load_state_dict(first.state_dict())
    second.restore(model)
    assert model[0].p == 0.5


def test_in_the_loop():
    class Watch:
        def __init__(self):
            self.rates = []

        def on_step_end(self, trainer):
            self.rates.append(trainer.model[1].p)

    model, watch = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), Watch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callbacks = [ScheduledDropout(0.4, "early", cutoff=0.5), watch]
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer=optimizer,
        callbacks=callbacks,
        epochs=2,
        batch_size=4,
        accelerator="cpu",
    )
    trainer.fit((torch.randn(16, 4), torch.arange(16) % 2))
    assert watch.rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0])
    assert model[1].p == 0.5


def test_arguments_out_of_range_are_refused():
    for options, message in (
        ({"p": 1.5}, "p=1.5"),
        ({"cutoff": -0.1}, "cutoff=-0.1"),
        ({"mode": "middle"}, "'middle'"),
    ):
        with pytest.raises(ValueError, match=message):
            ScheduledDropout(**options)
