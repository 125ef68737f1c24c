"""When a run ends, and which weights it leaves."""

import math

import pytest
import torch
from torch import nn

from wellposed.train import DivergedError, Trainer
from wellposed.train.stopping import BestWeights


class Scripted:
    """A metric that gives one figure after the other."""

    def __init__(self, figures):
        self.figures = iter(figures)

    def __call__(self, outputs, targets):
        return next(self.figures)


class Watch:
    def __init__(self, event, function):
        setattr(self, event, function)


def trainer_of(model, figures=(), loss=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"metrics": {"figure": Scripted(figures)}, "monitor": "figure", "epochs": 8} | options
    loss = nn.CrossEntropyLoss() if loss is None else loss
    return Trainer(model, loss, optimizer=optimizer, batch_size=8, seed=0, **options)


def snapshots(kept):
    return Watch("on_epoch_end", lambda t: kept.append({k: v.clone() for k, v in t.model.state_dict().items()}))


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


class TestPatience:
    @pytest.mark.parametrize(
        ("mode", "figures"), [("min", [3.0, 1.0, 2.0, 2.0, 1.0, 0.0]), ("max", [0.0, 5.0, 4.0, 5.0, 3.0, 9.0])]
    )
    def test_stops_and_leaves_the_best_epoch_s_weights(self, mlp, table, mode, figures):
        kept, model = [], mlp()
        trainer = trainer_of(model, figures, mode=mode, patience=3, callbacks=[snapshots(kept)])
        history = trainer.fit(table, table)
        assert len(history) == 5
        assert trainer.best.epoch == 1
        assert same(model.state_dict(), kept[1])
        assert not same(kept[1], kept[4])

    def test_without_it_all_epochs_are_trained_and_the_last_weights_kept(self, mlp, table):
        kept, model = [], mlp()
        trainer = trainer_of(model, range(8), callbacks=[snapshots(kept)])
        assert len(trainer.fit(table, table)) == 8
        assert same(model.state_dict(), kept[7])

    def test_restores_buffers_too(self, table):
        kept = []
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        trainer_of(model, [0.0, 1.0, 2.0], patience=2, callbacks=[snapshots(kept)]).fit(table, table)
        assert same(model.state_dict(), kept[0])
        assert not torch.equal(kept[0]["1.running_mean"], kept[2]["1.running_mean"])

    def test_goes_by_the_validation_loss_by_default(self, mlp, table):
        other = table[0], (table[1] + 1) % 3
        trainer = trainer_of(mlp(), monitor="loss", patience=2, metrics={})
        trainer.fit(table, other)
        valid = [row["valid_loss"] for row in trainer.history]
        assert trainer.best.epoch == valid.index(min(valid))
        assert trainer.evaluate(other)["loss"] == pytest.approx(min(valid))

    def test_needs_validation_data(self, mlp, table):
        with pytest.raises(ValueError, match="patience needs validation data"):
            trainer_of(mlp(), patience=2).fit(table)

    def test_by_a_loss_that_cannot_be_measured_is_refused(self, mlp, table):
        class ByIndex(nn.CrossEntropyLoss):
            def forward(self, outputs, targets, *, index):
                return super().forward(outputs, targets)

        with pytest.raises(ValueError, match=r"valid_loss was not measured.*monitor a metric"):
            trainer_of(mlp(), monitor="loss", patience=2, metrics={}, loss=ByIndex()).fit(table, table)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"monitor": "figur"}, r"monitor='figur' is not measured, did you mean 'figure'\?"),
            ({"mode": "smallest", "patience": 1}, "mode='smallest'"),
        ],
    )
    def test_wrong_options_are_refused(self, mlp, options, message):
        with pytest.raises(ValueError, match=message):
            trainer_of(mlp(), **options)


class TestBestWeights:
    def test_a_figure_that_is_no_number_is_never_the_best(self, mlp):
        best, model = BestWeights("x", "min", patience=3), mlp()
        figures = [math.nan, 1.0, math.nan, 0.5]
        assert not any(best.update(e, {"valid_x": figure}, model) for e, figure in enumerate(figures))
        assert (best.epoch, best.figure) == (3, 0.5)
        assert [best.update(e, {"valid_x": math.nan}, model) for e in (4, 5, 6)] == [False, False, True]

    def test_without_a_best_epoch_the_weights_stay(self, mlp):
        best, model = BestWeights("x", "max", patience=2), mlp()
        assert [best.update(e, {"valid_x": math.nan}, model) for e in (0, 1)] == [False, True]
        best.restore(model)
        assert same(model.state_dict(), mlp().state_dict())

    def test_keeps_copies(self, mlp):
        best, model = BestWeights("x", "min", patience=3), mlp()
        best.update(0, {"valid_x": 0.0}, model)
        with torch.no_grad():
            model[0].weight.fill_(7.0)
        best.restore(model)
        assert same(model.state_dict(), mlp().state_dict())


class TestStopping:
    @pytest.mark.parametrize("event", ["on_step_start", "on_step_end"])
    def test_from_a_callback_ends_inside_the_epoch_and_closes_it(self, mlp, table, event):
        def stop(trainer):
            trainer.stop = trainer.stop or trainer.step >= 6

        ended = []
        callbacks = [Watch(event, stop), Watch("on_fit_end", lambda t: ended.append(t.step))]
        trainer = trainer_of(mlp(), [0.0, 0.0], callbacks=callbacks)
        history = trainer.fit(table, table)
        assert ended == [7 if event == "on_step_start" else 6]
        assert [row["epoch"] for row in history] == [0.0, 1.0]
        assert "valid_figure" in history[1]
        assert not trainer.out_of_time

    def test_from_the_epoch_s_end_ends_after_it(self, mlp, table):
        def stop(trainer):
            trainer.stop = trainer.epoch == 3

        trainer = trainer_of(mlp(), callbacks=[Watch("on_epoch_end", stop)])
        trainer.fit(table)
        assert trainer.step == 12

    def test_before_the_first_step_trains_nothing(self, mlp, table):
        model = mlp()
        trainer = trainer_of(model, callbacks=[Watch("on_epoch_start", lambda t: setattr(t, "stop", True))])
        assert trainer.fit(table) == []
        assert same(model.state_dict(), mlp().state_dict())

    def test_at_the_time_limit_comes_after_one_step(self, mlp, table):
        trainer = trainer_of(mlp(), [0.0], max_seconds=0.0)
        history = trainer.fit(table, table)
        assert trainer.step == 1
        assert trainer.out_of_time
        assert len(history) == 1

    def test_a_generous_time_limit_changes_nothing(self, mlp, table):
        one, two = mlp(), mlp()
        trainer_of(one, max_seconds=600.0).fit(table)
        trainer_of(two).fit(table)
        assert same(one.state_dict(), two.state_dict())

    def test_fitting_again_goes_on(self, mlp, table):
        one, two = mlp(), mlp()
        trainer = trainer_of(one, callbacks=[Watch("on_epoch_end", lambda t: setattr(t, "stop", t.epoch == 3))])
        trainer.fit(table)
        assert trainer.epoch == 3
        trainer.fit(table)
        assert trainer.epoch == 8
        trainer_of(two).fit(table)
        assert same(one.state_dict(), two.state_dict())


class TestDivergence:
    class Spoiled(nn.CrossEntropyLoss):
        """Not a number from the third epoch on."""

        def forward(self, outputs, targets, *, epoch=0):
            return super().forward(outputs, targets) * (math.nan if self.training and epoch >= 2 else 1.0)

    def test_returns_to_the_best_epoch_if_there_is_one(self, mlp, table):
        kept, model = [], mlp()
        trainer = trainer_of(model, [2.0, 1.0, 0.0, 0.0], patience=5, loss=self.Spoiled(), callbacks=[snapshots(kept)])
        history = trainer.fit(table, table)
        assert len(history) == 3
        assert same(model.state_dict(), kept[1])

    def test_is_an_error_otherwise(self, mlp, table):
        with pytest.raises(DivergedError, match="the loss is nan in epoch 2"):
            trainer_of(mlp(), loss=self.Spoiled()).fit(table)
