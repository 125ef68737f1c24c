"""The helpers that classification losses share."""

import pytest
import torch

from wellposed.losses.targets import check_classification, expected, probabilities, promote, reduce


@pytest.mark.parametrize(
    ("outputs", "targets", "says"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), r"\(N, C\)"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), "floating"),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64), r"int64 \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "shape of the outputs"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int32), "int32"),
    ],
)
def test_wrong_shapes_say_what_is_wrong(outputs, targets, says):
    with pytest.raises(ValueError, match=says):
        check_classification(outputs, targets)


def test_expected_is_the_value_at_the_target_for_both_forms():
    values, targets = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    by_hand = torch.stack([values[i, t] for i, t in enumerate(targets.tolist())])
    torch.testing.assert_close(expected(values, targets), by_hand)
    torch.testing.assert_close(expected(values, probabilities(targets, values)), by_hand)


def test_promote_only_touches_half_precision():
    assert promote(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert promote(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_reduce():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert reduce(losses, "mean") == 3
    assert reduce(losses, "sum") == 9
    assert torch.equal(reduce(losses, "none"), losses)
