"""Results of runs as `wellposed fit` writes them: two classes, ten classes, a number, and a hostile stranger's."""

import numpy as np
import pytest

from wellposed.study.references import BOOSTING, GUESS, LINEAR
from wellposed.study.results import (
    Column,
    Curve,
    DataFacts,
    Diagnosis,
    Entry,
    RunResult,
    Trial,
    Worth,
)
from wellposed.study.verdict import PLAIN_NET

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><img src=x onerror=\"document.title='owned'\">",
    "<b>bold</b> {{ 7 * 7 }} {% raw %}",
    "quote\"'`back\\slash",
    "\u202eright to left \x00 nul \ud800 lone",
    "&lt;already escaped&amp;",
    "-->]]><!--",
    "a_very_long_column_name_without_any_place_to_break_a_line_" * 3,
    "https://example.com/x.js",
    "javascript:alert(1)",
)
ENVIRONMENT = {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.1", "device": "cpu, 2 threads"}
PLAIN = "CrossEntropy() + AdamW(lr=0.001)"
NETWORK = {"width": 256, "depth": 3, "dropout": 0.1}


def _entry(name, recipe, valid, test=None, behind=None, *, seconds=4.0, half=0.012, kind="searched", spread=0.006):
    sure = {} if test is None else {"low": test - half, "high": test + 0.8 * abs(half)}
    if behind is not None:
        sure |= {"behind": behind, "behind_low": behind - 0.6 * half, "behind_high": behind + 0.7 * half}
    network = NETWORK if kind == "searched" else {}
    return Entry(name, kind, recipe, network, valid, spread, seconds, test, **sure)


def _curve(name, start, floor, best, *, epochs, overfits, rng, sign=1.0):
    t = np.arange(1, epochs + 1)
    loss = floor + (start - floor) * np.exp(-t / (epochs / 6)) + 0.004 * start * rng.standard_normal(epochs)
    valid = best - sign * (best * 0.12) * np.exp(-t / (epochs / 8)) - overfits * (t / epochs) ** 2
    valid = valid + 0.0015 * best * rng.standard_normal(epochs)
    rows = tuple(
        {"epoch": float(e), "loss": float(a), "valid": float(v)} for e, a, v in zip(t, loss, valid, strict=True)
    )
    return Curve(name, rows)


def _trials(count, recipes, low, high, rng, *, sign=1.0):
    trials = []
    for number in range(count):
        draw = rng.beta(2 + number / 10, 2)
        value = low + (high - low) * draw if sign > 0 else high - (high - low) * draw
        state = "failed" if number == 11 else "pruned" if number > 5 and rng.random() < 0.35 else "complete"
        value = None if state == "failed" else float(value - sign * 0.3 * (high - low) * (state == "pruned"))
        trials.append(Trial(number, state, recipes[number % len(recipes)], value, float(rng.uniform(1, 8))))
    return tuple(trials)


@pytest.fixture(scope="session")
def binary() -> RunResult:
    rng = np.random.default_rng(0)
    winner = (
        "MaxSup(alpha=0.118) + NormLoss(0.00042) + FeatureMasking(p=0.08) + SAM(AdamW(lr=0.0021), rho=0.05) + WSD(0.3)"
    )
    second = "PolyLoss(epsilon=1.4) + SpectralDecoupling(0.0031) + AdamW(lr=0.0016)"
    names = (
        "age",
        "workclass",
        "fnlwgt",
        "education",
        "education_num",
        "hours_per_week",
        "sex",
        "record_id",
        "country",
    )
    kinds = ("number", "category", "number", "category", "number", "number", "boolean", "id-like", "category")
    bins = [(0.55, 0.53, 214), (0.65, 0.61, 268), (0.75, 0.74, 402), (0.85, 0.83, 701), (0.95, 0.945, 2415)]
    return RunResult(
        version="0.1.0",
        created="2025-06-03T14:21:07+00:00",
        command="wellposed fit adult.csv --target income --budget 5m --seed 7",
        seed=7,
        budget_seconds=300.0,
        elapsed_seconds=293.4,
        metric="accuracy",
        higher_is_better=True,
        percent=True,
        recipe=winner,
        network=NETWORK,
        verdict=(
            "MaxSup + NormLoss + SAM beat the plain net by 1.8 points (95 % interval 0.6 to 3.1).",
            "Gradient boosting is 0.4 points behind, within noise.",
        ),
        data=DataFacts(
            source="/home/ada/tables/adult.csv",
            target="income",
            task="binary",
            rows=20_012,
            train_rows=16_012,
            test_rows=4_000,
            scheme="hold-out of 20 % for the test, 3-fold cross-validation on the rest, stratified by income",
            columns=tuple(
                Column(
                    name,
                    kind,
                    "every value is different" if kind == "id-like" else f"most values read as {kind}",
                    0.056 if name == "workclass" else 0.0,
                    levels,
                    examples,
                    kind != "id-like",
                )
                for name, kind, levels, examples in zip(
                    names,
                    kinds,
                    (73, 8, 18_412, 16, 16, 94, 2, 20_012, 42),
                    (
                        ("39", "50", "38"),
                        ("Private", "Self-emp-not-inc", "Local-gov"),
                        ("77516", "83311"),
                        ("Bachelors", "HS-grad", "11th"),
                        ("13", "9", "7"),
                        ("40", "13"),
                        ("Male", "Female"),
                        ("r-000001", "r-000002"),
                        ("United-States", "Mexico", "a very long place name that goes on and on past any column"),
                    ),
                    strict=True,
                )
            ),
            classes={"<=50K": 15_209, ">50K": 4_803},
            notes=("24 duplicate rows were kept.", "37 rows without income were left out."),
            warnings=("education_num says the same as education: only one of them was used to find the recipe.",),
        ),
        leaderboard=(
            _entry("MaxSup + NormLoss + SAM", winner, 0.871, 0.874, seconds=12.3),
            _entry(BOOSTING, None, 0.868, 0.870, 0.004, seconds=2.1, kind="reference"),
            _entry("PolyLoss + SpectralDecoupling", second, 0.866, 0.866, 0.008, seconds=6.7),
            *(_entry(f"trial {n}", second, 0.865 - n / 1000, seconds=5.0 + n) for n in range(3, 16)),
            _entry(PLAIN_NET, PLAIN, 0.853, 0.856, 0.018, seconds=3.4),
            _entry(LINEAR, None, 0.846, 0.848, 0.026, seconds=0.4, kind="reference"),
            _entry(GUESS, None, 0.760, 0.760, 0.114, seconds=0.01, kind="reference"),
        ),
        worth=(
            Worth("SAM(AdamW(lr=0.0021), rho=0.05)", 0.0092, 0.0041, 0.0140, 5),
            Worth("MaxSup(alpha=0.118)", 0.0061, 0.0012, 0.0113, 5),
            Worth("NormLoss(0.00042)", 0.0018, -0.0011, 0.0049, 5),
            Worth("FeatureMasking(p=0.08)", -0.0007, -0.0033, 0.0021, 5),
        ),
        curves=(
            _curve("winner", 0.68, 0.31, 0.872, epochs=60, overfits=0.0, rng=rng),
            _curve(PLAIN_NET, 0.66, 0.14, 0.861, epochs=60, overfits=0.018, rng=rng),
        ),
        trials=_trials(48, (winner, second, PLAIN), 0.83, 0.872, rng),
        diagnosis=Diagnosis(
            reliability=tuple({"confidence": c, "accuracy": a, "count": float(n)} for c, a, n in bins),
            ece=0.0123,
            labels=("<=50K", ">50K"),
            confusion=((2870, 170), (334, 626)),
        ),
        environment=ENVIRONMENT,
    )


@pytest.fixture(scope="session")
def digits() -> RunResult:
    rng = np.random.default_rng(1)
    winner = "LabelSmoothing(alpha=0.08) + DecoupledMixup(alpha=0.4) + SAM(SGDW(lr=0.05), rho=0.08)"
    confusion = rng.poisson(0.35, (10, 10))
    confusion[np.arange(10), np.arange(10)] = rng.integers(30, 38, 10)
    confusion[8, 1], confusion[9, 3] = 4, 3
    bins = [(0.45, 0.5, 4), (0.56, 0.64, 11), (0.66, 0.72, 18), (0.76, 0.83, 29), (0.86, 0.93, 61), (0.96, 0.99, 237)]
    return RunResult(
        version="0.1.0",
        created="2025-06-03T15:02:44+00:00",
        command="wellposed fit sample:digits --target digit --trials 30",
        seed=0,
        budget_seconds=None,
        elapsed_seconds=171.0,
        metric="balanced_accuracy",
        higher_is_better=True,
        percent=True,
        recipe=winner,
        network={"width": 128, "depth": 2, "dropout": 0.25, "lr": 0.05},
        verdict=("LabelSmoothing + DecoupledMixup + SAM beat the plain net by 1.3 points.", "It also beat boosting."),
        data=DataFacts(
            source="sample:digits",
            target="digit",
            task="multiclass",
            rows=1_797,
            train_rows=1_437,
            test_rows=360,
            scheme="hold-out of 20 % for the test, 5-fold cross-validation on the rest",
            columns=tuple(
                Column(
                    f"pixel_{i // 8}_{i % 8}", "number", "every value reads as a number", 0.0, 17, ("0", "5"), i % 8 > 0
                )
                for i in range(64)
            ),
            classes={str(d): 180 - d for d in range(10)},
            notes=("8 constant columns were left out.",),
            warnings=(),
        ),
        leaderboard=(
            _entry("LabelSmoothing + DecoupledMixup + SAM", winner, 0.984, 0.981),
            _entry(PLAIN_NET, PLAIN, 0.971, 0.968, 0.013),
            _entry(BOOSTING, None, 0.965, 0.961, 0.020, kind="reference"),
            _entry(LINEAR, None, 0.958, 0.953, 0.028, kind="reference"),
            _entry(GUESS, None, 0.1, 0.1, 0.881, kind="reference"),
        ),
        worth=(Worth("SAM(SGDW(lr=0.05), rho=0.08)", 0.006, 0.001, 0.011, 5),),
        curves=(
            _curve("winner", 2.3, 0.52, 0.984, epochs=40, overfits=0.0, rng=rng),
            _curve(PLAIN_NET, 2.3, 0.01, 0.972, epochs=40, overfits=0.004, rng=rng),
        ),
        trials=_trials(30, (winner, PLAIN), 0.95, 0.984, rng),
        diagnosis=Diagnosis(
            reliability=tuple({"confidence": c, "accuracy": a, "count": float(n)} for c, a, n in bins),
            ece=0.041,
            labels=tuple(str(d) for d in range(10)),
            confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        ),
        environment=ENVIRONMENT,
    )


@pytest.fixture(scope="session")
def regression() -> RunResult:
    """Boosting is ahead here, and the best recipe is the plain net."""
    rng = np.random.default_rng(2)
    plain = "SquaredError() + AdamW(lr=0.001)"
    actual = rng.gamma(4.0, 52_000.0, 1_200)
    predicted = actual * np.exp(0.16 * rng.standard_normal(1_200)) * 0.96 + 9_000
    trials = _trials(26, (plain, "Huber(delta=1.2) + AdamW(lr=0.002)"), 51_000.0, 63_000.0, rng, sign=-1.0)
    diverged = Trial(26, "complete", "Huber(delta=9) + SGDW(lr=0.1)", 4.1e6, 2.0)
    return RunResult(
        version="0.1.0",
        created="2025-06-03T16:40:00+00:00",
        command="wellposed fit houses.parquet --target price --time sold",
        seed=3,
        budget_seconds=180.0,
        elapsed_seconds=181.9,
        metric="rmse",
        higher_is_better=False,
        percent=False,
        recipe=plain,
        network=NETWORK,
        verdict=(
            "The plain net was the best net: no cocktail that was tried did better on the validation data.",
            "Gradient boosting, the best reference, is 2,310 ahead, 95 % interval 1,050 to 3,390.",
        ),
        data=DataFacts(
            source="houses.parquet",
            target="price",
            task="regression",
            rows=9_120,
            train_rows=7_920,
            test_rows=1_200,
            scheme="the latest rows by sold are the test, expanding windows before them",
            columns=(
                Column("rooms", "number", "every value reads as a number", 0.0, 11, ("4", "5"), True),
                Column("sold", "date", "every value reads as a date", 0.0, 2_101, ("2019-04-02",), True),
                Column(
                    "remarks", "free text", "long and nearly all different", 0.31, 6_210, ("Sunny, top floor",), False
                ),
            ),
            classes={},
            notes=(),
            warnings=(),
        ),
        leaderboard=(
            _entry(BOOSTING, None, 50_120.0, 49_870.0, -2_310.0, kind="reference", half=1_800.0, spread=900.0),
            _entry(PLAIN_NET, plain, 52_410.0, 52_180.0, half=1_900.0, spread=1_100.0),
            _entry(LINEAR, None, 61_020.0, 60_400.0, 8_220.0, kind="reference", half=2_300.0, spread=800.0),
            _entry(GUESS, None, 104_000.0, 103_800.0, 51_620.0, kind="reference", half=4_000.0, spread=500.0),
        ),
        worth=(),
        curves=(_curve(PLAIN_NET, 1.1, 0.21, 53_000.0, epochs=80, overfits=0.0, rng=rng, sign=-1.0),),
        trials=(*trials, diverged),
        diagnosis=Diagnosis(
            actual=tuple(float(v) for v in actual),
            predicted=tuple(float(v) for v in predicted),
        ),
        environment=ENVIRONMENT,
    )


@pytest.fixture(scope="session")
def hostile() -> RunResult:
    """60 columns named by an attacker, 40 classes, an interrupted run: no ablation, no test figures, a failed trial."""
    rng = np.random.default_rng(3)
    name = [HOSTILE[i % len(HOSTILE)] + f" #{i}" for i in range(60)]
    smooth = "LabelSmoothing(alpha=0.1) + AdamW(lr=0.001)"
    labels = tuple(name[:40])
    confusion = rng.poisson(0.6, (40, 40)) + np.diag(rng.integers(0, 9, 40))
    return RunResult(
        version="0.1.0",
        created="2025-06-03T17:00:00+00:00",
        command=f"wellposed fit '{HOSTILE[0]}' --target '{HOSTILE[1]}'",
        seed=0,
        budget_seconds=60.0,
        elapsed_seconds=4210.0,
        metric="log_loss",
        higher_is_better=False,
        percent=False,
        recipe=smooth,
        network={},
        verdict=(f"The search of {HOSTILE[1]} was interrupted.", "No figure of the test part was measured."),
        data=DataFacts(
            source=f"/tmp/{HOSTILE[2]}.csv",
            target=HOSTILE[1],
            task="multiclass",
            rows=412,
            train_rows=330,
            test_rows=82,
            scheme=f"grouped by {HOSTILE[0]}",
            columns=tuple(
                Column(n, "category", f"levels such as {n}", 0.5, 40, (n, "x" * 400), i % 7 > 0)
                for i, n in enumerate(name)
            ),
            classes={label: 10 + i for i, label in enumerate(labels)},
            notes=(f"{HOSTILE[0]} is constant.",),
            warnings=(f"{HOSTILE[1]} equals the target: a leak.", f"{HOSTILE[7]} has 400 levels."),
        ),
        leaderboard=(
            Entry(HOSTILE[0], "searched", smooth, {}, 2.5, None, 3.0),
            Entry(PLAIN_NET, "searched", PLAIN, {}, None, None, 0.0),
        ),
        worth=(),
        curves=(
            Curve(HOSTILE[1], ({"epoch": 1.0, "loss": 3.1, "valid": 3.0}, {"epoch": 2.0, "loss": float("nan")})),
            Curve(PLAIN_NET, ()),
        ),
        trials=(
            Trial(0, "complete", HOSTILE[1], 2.5, 3.0),
            Trial(1, "complete", HOSTILE[0], 2.9, 3.0),
            Trial(2, "failed", "", None, 0.0),
        ),
        diagnosis=Diagnosis(
            labels=labels,
            confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        ),
    )


@pytest.fixture(scope="session")
def results(binary, digits, regression, hostile) -> dict[str, RunResult]:
    return {"binary": binary, "digits": digits, "regression": regression, "hostile": hostile}
