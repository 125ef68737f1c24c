"""Real tables that scikit-learn ships, under ``sample:NAME``."""

from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from wellposed.errors import UserError, nearest, shown


@dataclass(frozen=True)
class Sample:
    """One shipped table: what it is about, what is usually predicted, and its columns where the loader abbreviates."""

    about: str
    target: str
    columns: tuple[str, ...] = ()


SAMPLES = MappingProxyType(
    {
        "breast_cancer": Sample("569 tumours, 30 measurements of cell nuclei", "diagnosis"),
        "diabetes": Sample(
            "442 patients, 10 measurements, progression of the disease a year later",
            "progression",
            (
                "age",
                "sex",
                "bmi",
                "blood_pressure",
                "cholesterol",
                "ldl",
                "hdl",
                "tc_hdl",
                "log_triglycerides",
                "glucose",
            ),
        ),
        "digits": Sample("1,797 handwritten digits, 8 x 8 grey values", "digit"),
        "iris": Sample("150 flowers, 4 measurements", "species"),
        "linnerud": Sample("20 men, 3 exercises and 3 body measurements", "Weight"),
        "wine": Sample("178 wines, 13 chemical measurements", "cultivar"),
    }
)
"""The tables there are, by name."""


def read_sample(name: str) -> pd.DataFrame:
    """The table called ``name``, inputs first and target last, classes by their names.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    sample = SAMPLES.get(name)
    if sample is None:
        raise UserError(f"there is no sample {shown(name)}{nearest(name, SAMPLES)} (there are: {', '.join(SAMPLES)})")
    from sklearn import datasets

    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(as_frame=True, **options)
    if name == "linnerud":
        shipped: pd.DataFrame = bunch.frame
        return shipped[[c for c in shipped.columns if c != sample.target] + [sample.target]]
    frame: pd.DataFrame = bunch.data.set_axis(list(sample.columns or bunch.data.columns), axis=1)
    if name not in ("digits", "diabetes"):
        return frame.assign(**{sample.target: [str(bunch.target_names[k]) for k in bunch.target]})
    return frame.assign(**{sample.target: bunch.target})
