"""What a cocktail has to beat: the mean or majority, a linear model, gradient boosting."""

from typing import Any, TypeAlias

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from wellposed.study.problem import Problem

Array: TypeAlias = np.ndarray
GUESS, LINEAR, BOOSTING = "Mean or majority", "Linear model", "Gradient boosting"
REFERENCES = (GUESS, LINEAR, BOOSTING)


def fit_reference(name: str, problem: Problem, x: Array, y: Array, seed: int) -> Any:
    """A fitted reference model.

    Args:
        name: one of :data:`REFERENCES`.
        problem: task and classes.
        x: encoded inputs ``(N, D)``.
        y: class indices or values ``(N,)``.
        seed: of gradient boosting.
    """
    classes = problem.num_classes is not None
    model: Any
    if name == GUESS:
        model = DummyClassifier(strategy="prior") if classes else DummyRegressor()
    elif name == LINEAR:
        model = LogisticRegression(max_iter=200) if classes else Ridge(alpha=1.0)
    else:
        boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
        rare = classes and np.unique(y, return_counts=True)[1].min() < 2
        stopping = False if rare or len(y) < 1_000 else "auto"
        model = boosting(random_state=seed, early_stopping=stopping)
    return model.fit(x, y)


def predict_reference(model: Any, problem: Problem, x: Array) -> Array:
    """Probabilities ``(N, C)`` over all classes, those not seen in training at 0, or values ``(N,)``."""
    if problem.num_classes is None:
        return np.asarray(model.predict(x), dtype=np.float64)
    probabilities = np.zeros((len(x), problem.num_classes))
    probabilities[:, np.asarray(model.classes_, dtype=int)] = model.predict_proba(x)
    return probabilities
