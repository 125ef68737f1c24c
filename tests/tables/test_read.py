"""Reading: every dialect comes back as it was written, and every bad file gets one line that names it."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc, parquet

from wellposed.errors import UserError
from wellposed.tables import SAMPLES, as_table, prepare, read_table
from wellposed.tables.cells import read_levels


@pytest.fixture
def write(tmp_path):
    def writing(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writing


def refusal(path, *, containing=()):
    with pytest.raises(UserError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for words in containing:
        assert words in message
    return message


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiter_encoding_and_line_end_are_found(write, delimiter, encoding, end):
    rows = [["naïve", "b c", "größe"], ["1.5", "é", "x"], ["2", "", "ü"], ["3", "u", "ñ"]]
    text = end.join(delimiter.join(row) for row in rows) + end
    table = read_table(write(text.encode(encoding)))
    assert table.frame.to_numpy().tolist() == rows[1:]
    assert list(table.frame) == rows[0]
    assert table.dialect.delimiter == delimiter
    assert table.dialect.encoding.replace("-", "") == encoding.replace("-", "")
    assert table.dialect.decimal == "."


cells = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from(',;|\t"\n '), max_size=8
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(cells, st.sampled_from(["1", "2.5", "x"]), cells), min_size=3, max_size=6),
    delimiter=st.sampled_from(",;\t|"),
)
def test_quoted_cells_come_back_whatever_they_hold(tmp_path, rows, delimiter):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    path = tmp_path / "quoted.csv"
    path.write_bytes(text.getvalue().encode())
    assert list(map(tuple, read_table(path).frame.to_numpy().tolist())) == rows


def test_decimal_commas_become_points(write):
    table = read_table(write("a;b;c;d\n1.234,5;1.000;x,y;1,5\n-2,25;12.000.000;2,3,4;2\n"))
    assert table.dialect.decimal == ","
    assert table.frame.to_numpy().tolist() == [["1234.5", "1000", "x,y", "1.5"], ["-2.25", "12000000", "2,3,4", "2"]]
    assert any("decimal comma" in note for note in table.notes)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('a,b\n"1,234",2\n"5,678",3\n', "1,234"),
        ("a;b\n1,5;0.123\nx;0.456\n", "1,5"),
        ('a,b\n"1,5",2.5\n"x",3.5\n', "1,5"),
    ],
)
def test_commas_that_are_no_decimals_stay(write, text, cell):
    table = read_table(write(text))
    assert table.dialect.decimal == "."
    assert table.frame.iloc[0, 0] == cell


def test_gzip_excel_hint_and_content_before_name(write, tmp_path):
    assert read_table(write(gzip.compress(b"a,b\n1,2\n"), "x.csv.gz")).frame.shape == (1, 2)
    assert read_table(write("sep=;\r\na;b,c\r\n1;2\r\n")).dialect.delimiter == ";"
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "p.csv")
    table = read_table(tmp_path / "p.csv")
    assert table.format == "parquet"
    assert "Parquet" in table.notes[0]


def test_blank_lines_are_missing_values_of_a_single_column_and_nothing_else(write):
    assert read_table(write("a\n1\n\n3\n")).frame["a"].tolist() == ["1", "", "3"]
    assert len(read_table(write("\n\na,b\n1,2\n\n3,4\n")).frame) == 2


def test_duplicate_and_empty_headers_are_made_distinct_and_said(write):
    table = read_table(write("a,a,,a_2, b ,a\n1,2,3,4,5,6\n"))
    assert list(table.frame) == ["a", "a_3", "column_3", "a_2", "b", "a_4"]
    assert "'a_3', 'a_4'" in " ".join(table.notes)
    assert "'column_3'" in " ".join(table.notes)


def test_every_sample_has_rows_names_and_its_target():
    for name, sample in SAMPLES.items():
        table = read_table(f"sample:{name}")
        assert table.target == sample.target == table.frame.columns[-1]
        assert all(isinstance(column, str) and column for column in table.frame)
        assert sample.about.split()[0].replace(",", "") == str(len(table.frame))
    iris = read_table("sample:iris").frame
    assert iris.groupby("species")["petal length (cm)"].mean().round(2).to_dict() == {
        "setosa": 1.46,
        "versicolor": 4.26,
        "virginica": 5.55,
    }


FRAME = pd.DataFrame(
    {
        "n": [1, None, 3],
        "x": [0.5, np.inf, np.nan],
        "s": ["a", None, "ü"],
        "b": [True, False, None],
        "t": pd.to_datetime(["2020-01-01", None, "2021-06-01"]),
        "c": pd.Categorical(["u", "v", None]),
    }
)


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow"])
def test_typed_files_keep_their_types(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    table = pa.Table.from_pandas(FRAME)
    table = table.append_column("list", pa.array([[1], [2], None]))
    table = table.append_column("decimal", pa.array([1, 2, None], pa.decimal128(5, 2)))
    table = table.append_column("day", pa.array([0, 366, None], pa.date32()))
    table = table.append_column("night", pa.array([0, 366 * 86_400_000, None], pa.date64()))
    table = table.append_column("lap", pa.array([1, 2, None], pa.duration("s")))
    table = table.append_column("bytes", pa.array([b"x", b"y", None]))
    if kind == "parquet":
        parquet.write_table(table, path)
    elif kind == "feather":
        feather.write_feather(table, path)
    else:
        with ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    read = read_table(path)
    assert read.format == ("parquet" if kind == "parquet" else "arrow")
    assert read.frame["n"].tolist()[::2] == [1, 3]
    assert read.frame["decimal"].tolist()[:2] == [1.0, 2.0]
    assert read.frame["day"].dt.year.tolist()[:2] == read.frame["night"].dt.year.tolist()[:2] == [1970, 1971]
    assert read.frame["lap"].tolist()[:2] == [1, 2]
    assert isinstance(read.frame["c"].dtype, pd.CategoricalDtype)
    assert not {"list", "bytes"} & set(read.frame)
    assert "'list', 'bytes'" in read.notes[-1]


class TestBadFiles:
    def test_no_such_file(self, write, tmp_path):
        write("a\n1\n", "houses.csv")
        refusal(tmp_path / "house.csv", containing=["no such file", "did you mean 'houses.csv'?"])
        refusal(tmp_path / "nowhere" / "x.csv", containing=["no directory"])

    def test_directory(self, tmp_path):
        refusal(tmp_path, containing=["directory"])

    def test_permission(self, write, monkeypatch):
        path = write("a\n1\n")

        def denied(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", denied)
        refusal(path, containing=["permission denied"])

    @pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xff\xfe"])
    def test_empty(self, write, content):
        refusal(write(content), containing=["is empty"])

    @pytest.mark.parametrize("content", ["a,b", "a,b\n", "a,b\r\n\r\n", "a\n"])
    def test_header_only(self, write, content):
        refusal(write(content), containing=["no rows", "'a'"])

    @pytest.mark.parametrize("size", [40, 5000])
    def test_binary_named_csv(self, write, size):
        noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes() + b"\0\x01"
        refusal(write(noise), containing=["binary"])

    def test_text_that_ends_in_noise(self, write):
        refusal(write("a,b\n1,2\n".encode("utf-16") + b"\x00"), containing=["damaged"])

    @pytest.mark.parametrize(
        ("start", "words"),
        [
            (b"PK\x03\x04", "Excel"),
            (b"\x89PNG\r\n", "picture"),
            (b"<!DOCTYPE html>", "web page"),
            (b'{"a": 1}', "JSON"),
        ],
    )
    def test_other_formats_are_named(self, write, start, words):
        refusal(write(start + b"content"), containing=[words])

    def test_truncated_parquet_and_feather(self, tmp_path):
        table = pa.Table.from_pandas(FRAME)
        parquet.write_table(table, tmp_path / "whole.parquet")
        feather.write_feather(table, tmp_path / "whole.feather")
        for name, words in (("parquet", "Parquet"), ("feather", "Arrow")):
            whole = (tmp_path / f"whole.{name}").read_bytes()
            cut = tmp_path / f"cut.{name}"
            for length in (len(whole) - 7, len(whole) // 2, 8):
                cut.write_bytes(whole[:length])
                refusal(cut, containing=["truncated", words])
            cut.write_bytes(b"a,b\n1,2\n")
            refusal(cut, containing=["not a"])
            cut.write_bytes(b"")
            refusal(cut, containing=["empty"])

    @pytest.mark.parametrize("kind", ["parquet", "feather"])
    def test_a_damaged_file_is_refused_or_read_and_nothing_else(self, tmp_path, kind):
        table = pa.table({"a": list(range(50)), "b": [f"s{i}" for i in range(50)]})
        path = tmp_path / f"data.{kind}"
        if kind == "parquet":
            parquet.write_table(table, path)
        else:
            feather.write_feather(table, path, compression="uncompressed")
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        refused = 0
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                read_levels(read_table(path).frame["b"])
            except UserError:
                refused += 1
            except KeyError:
                pass  # the damage was in the column's name
        assert refused > 10

    def test_truncated_gzip(self, write):
        refusal(write(gzip.compress(b"a,b\n1,2\n" * 50)[:-9], "x.csv.gz"), containing=["truncated gzip"])

    def test_parquet_without_rows_or_columns(self, tmp_path):
        parquet.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
        refusal(tmp_path / "a.parquet", containing=["no rows", "'a'"])
        parquet.write_table(pa.table({"a": [[1]]}), tmp_path / "a.parquet")
        refusal(tmp_path / "a.parquet", containing=["no columns"])

    def test_ragged_rows_name_the_first(self, write):
        refusal(
            write("a,b\n1,2\n3\n4,5,6\n"), containing=["data row 2 has 1 cell where the header has 2", "such rows: 2"]
        )
        refusal(write('a,b\n1,2\n"3,4\n5,6\n'), containing=["data row 2", "quote never closed"])

    @pytest.mark.parametrize(("mark", "words"), [("  ", "blanks"), (":", "':'"), ("^", "'^'")])
    def test_wrong_delimiter_shows_when_the_target_is_missing(self, write, mark, words):
        rows = [["x", "y"], ["1", "2"], ["3", "4"]]
        path = write("\n".join(mark.join(row) for row in rows))
        with pytest.raises(UserError) as caught:
            prepare(read_table(path), "y")
        assert f"{path} has no column 'y' for --target" in str(caught.value)
        assert f"one column: are its cells separated by {words}?" in str(caught.value)

    def test_unknown_sample(self):
        with pytest.raises(UserError, match=r"no sample 'irs', did you mean 'iris'\?.*wine"):
            read_table("sample:irs")


def test_a_row_longer_than_a_block_is_read(write):
    long = "x" * (5 << 20)
    table = read_table(write("a,b\n1,2\n" * 300 + f"3,{long}\n"))
    assert table.frame["b"].iloc[-1] == long


def test_frames_in_memory_get_distinct_string_names():
    table = as_table(pd.DataFrame([[1, 2, 3]], columns=["a", "a", 7], index=[5]))
    assert list(table.frame) == ["a", "a_2", "7"]
    assert table.frame.index.tolist() == [0]
    with pytest.raises(UserError, match="no rows"):
        as_table(pd.DataFrame({"a": []}))
