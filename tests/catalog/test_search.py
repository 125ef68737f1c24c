"""Search: the words people use find the rows they mean, and nothing they type breaks it."""

import pytest

from wellposed import catalog
from wellposed.errors import UserError


def slugs(words: str, **filters: str) -> list[str]:
    return [row.slug for row in catalog.search(words, **filters)]


@pytest.mark.parametrize(
    ("words", "slug", "among"),
    [
        ("noisy labels", "elr", 10),
        ("label noise", "elr", 10),
        ("mislabelled data", "elr", 30),
        ("my labels are wrong", "ncr", 30),
        ("sharpness", "sam", 10),
        ("flat minima", "sam", 10),
        ("overconfident", "maxsup", 15),
        ("class imbalance", "focal", 5),
        ("long-tailed classes", "nc-long-tail", 10),
        ("semi-supervised", "vat", 5),
        ("loss of plasticity", "continual-backprop", 3),
        ("dead neurons", "continual-backprop", 5),
        ("catastrophic forgetting", "mixout", 30),
        ("learning rate schedule", "wsd", 10),
        ("spurious features", "spectral-decoupling", 5),
        ("group lasso pruning", "structured-sparsity", 10),
        ("coreset", "el2n", 30),
        ("2010.01412", "sam", 1),
        ("max sup", "maxsup", 1),
        ("MaxSup", "maxsup", 1),
        ("73", "maxsup", 1),
        ("label smoothing", "label-smoothing", 1),
    ],
)
def test_the_words_people_use_find_the_method(words, slug, among):
    assert slug in slugs(words)[:among]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sharpn", "sharpness"),
        ("sharpnss", "sharpness"),
        ("calibraton", "calibration"),
        ("cutuot", "cutout"),
        ("regularisation", "regularization"),
        ("analyse", "analyze"),
        ("NOISY Labels!!", "noisy labels"),
    ],
)
def test_misspelt_and_unfinished_words_are_read_as_the_nearest(typed, meant):
    assert slugs(meant)
    assert slugs(typed) == slugs(meant)


def test_rows_with_all_the_words_come_alone():
    both = slugs("label noise distillation")
    assert "noisy-self-distillation" in both
    assert set(both) < set(slugs("label noise"))


def test_rows_with_some_of_the_words_come_where_none_has_all():
    assert "maxsup" in slugs("maxsup qwertyuiop")
    assert slugs("maxsup cutout")


def test_a_name_outweighs_a_description():
    assert slugs("dropout")[0] in ("scheduled-dropout", "large-dropout")
    assert slugs("cutout")[0] == "cutout"


def test_filters():
    assert [row.slug for row in catalog.search("")] == [row.slug for row in catalog.rows()]
    assert {row.room for row in catalog.search("", room="theory")} == {"theory"}
    assert "elr" in slugs("noisy labels", room="losses")
    assert "elr" in slugs("noisy labels", room="data")
    assert "elr" not in slugs("noisy labels", room="optim")
    assert {row.status for row in catalog.search("", status="works")} == {"works"}
    with pytest.raises(UserError, match=r"no room 'loses', did you mean 'losses'\?"):
        catalog.search("", room="loses")
    with pytest.raises(UserError, match=r"no status 'done' \(there are: works"):
        catalog.search("", status="done")


@pytest.mark.parametrize("nothing", ["🎉", '"', "*", "((((", "'; --", "\x00", "\ud800", "²", "中文", "_", "zzzzqqqq"])
def test_what_holds_no_known_word_finds_nothing(nothing):
    assert slugs(nothing) == []


@pytest.mark.parametrize(
    "hostile",
    [
        "AND",
        "OR NOT",
        "NEAR(label noise, 2)",
        "^sam",
        "names:sam",
        "sam*",
        'sam" OR "x',
        "{names math}: x",
        "-noise",
        "x'; DROP TABLE methods; --",
        "label\x00noise",
        "naïve Bayes ﬁt",
        "(" * 2000 + "sam",
        "noise " * 5000,
        " ".join(f"word{i}" for i in range(3000)),
        "a" * 100_000,
        "\n\t noise \r\n",
    ],
)
def test_hostile_queries_are_words_like_any_other(hostile):
    assert all(isinstance(row, catalog.Row) for row in catalog.search(hostile))


def test_the_index_survives_a_query_that_looks_like_sql():
    catalog.search("x'; DROP TABLE methods; --")
    assert "elr" in slugs("noisy labels")
