"""The verdict says what the figures say."""

import pytest

from wellposed.study.metrics import METRICS
from wellposed.study.results import Entry
from wellposed.study.verdict import verdict

ACCURACY = METRICS["accuracy"]


def entry(name: str, test: float, behind: float, low: float, high: float) -> Entry:
    return Entry(name, "reference", None, {}, 0.9, 0.0, 1.0, test, 0.8, 1.0, behind, low, high)


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        ((0.018, 0.006, 0.031), "MaxSup beat the plain net by 1.8 points of accuracy (95 % interval 0.6 to 3.1)."),
        (
            (-0.02, -0.03, -0.01),
            "MaxSup won on the validation data and lost on the test part: the plain net is 2.0 points",
        ),
        ((0.001, -0.01, 0.02), "MaxSup and the plain net are within noise of each other: +0.1 points of accuracy"),
    ],
)
def test_the_first_sentence_is_about_the_plain_net(gap, says):
    first, _ = verdict(ACCURACY, "MaxSup", entry("Plain net", 0.9, *gap), [entry("Boosting", 0.9, 0.1, 0.05, 0.2)])
    assert first.startswith(says)


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        ((0.004, -0.01, 0.02), "Boosting, the best reference, is 0.4 points behind, within noise."),
        ((-0.03, -0.05, -0.01), "Boosting, the best reference, is 3.0 points ahead, 95 % interval 1.0 to 5.0."),
        ((0.0, -0.01, 0.01), "Boosting, the best reference, does as well."),
    ],
)
def test_the_second_sentence_is_about_the_best_reference(gap, says):
    others = [entry("Mean or majority", 0.5, 0.4, 0.3, 0.5), entry("Boosting", 0.9, *gap)]
    assert verdict(ACCURACY, "MaxSup", entry("Plain net", 0.9, 0.1, 0.05, 0.2), others)[1] == says


def test_the_plain_net_can_win():
    first, _ = verdict(ACCURACY, "Plain net", None, [entry("Boosting", 0.9, 0.1, 0.05, 0.2)])
    assert first.startswith("The plain net was the best net")
