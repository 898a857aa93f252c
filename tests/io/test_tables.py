import polars as pl
import pytest

from talstack.io.errors import InputError
from talstack.io.tables import read_csv, read_header

SCHEMA = {"name": pl.String, "value": pl.Float64}


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "t.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_those_of_the_file(write, end):
    text = '\n\n"name",value,"a\nnote"\n\n"a\n\nb",1,x\nc,2,"y\n"\n\nd,3,z\ne,4,'
    table = read_csv(write(text.replace("\n", end)), SCHEMA)
    assert table["value"].to_list() == [1, 2, 3, 4]
    assert table["line"].to_list() == [6, 9, 12, 13]
    assert read_csv(write("name,value\n\nc,2\n\n\nd,3\n"), SCHEMA)["line"].to_list() == [3, 6]
    assert read_csv(write("name,value\n"), SCHEMA).height == 0


def test_errors_after_a_quoted_break_name_the_line(write):
    with pytest.raises(InputError, match=r"t\.csv, line 4, column value: expected Float64, got 'x'"):
        read_csv(write('name,value\n"a\nb",1\nc,x\n'), SCHEMA)
    with pytest.raises(InputError, match=r"t\.csv, line 3, column value: expected Float64, got 'x'"):
        read_csv(write("\nname,value\nc,x\n"), SCHEMA)


@pytest.mark.parametrize("header", ["name,value,x, x", "name,value,, ", "name,value, line,line", " name , value,x,x"])
def test_further_columns_may_be_called_anything(write, header):
    assert read_csv(write(header + "\na,1,2,3\n"), SCHEMA).rows() == [("a", 1.0, 2)]


def test_a_column_called_line_can_be_asked_for(write):
    path = write("name,line\na,0.5\n")
    assert read_csv(path, {"name": pl.String, "line": pl.Float64}).rows() == [("a", 0.5)]
    with pytest.raises(InputError, match="line 3, column line: expected Float64, got 'x'"):
        read_csv(write("name,line\na,0.5\nb,x\n"), {"name": pl.String, "line": pl.Float64})


def test_names_of_columns_may_hold_commas(write):
    path = write('name,"my,value"\na,1\n')
    assert read_header(path) == ["name", "my,value"]
    assert read_csv(path, {"my,value": pl.Float64}).rows() == [(1.0, 2)]


def test_a_wanted_column_that_stands_twice_is_refused(write):
    with pytest.raises(InputError, match="column value stands twice"):
        read_csv(write("name,value, value\na,1,2\n"), SCHEMA)


@pytest.mark.parametrize("content", [b"name,value\na,1\nb\xe9,2\n", b'name,value,z\n"a",1,\nb,2,"\xe8"\n'])
def test_other_encodings_are_refused_where_names_must_stay_apart(write, content):
    assert read_csv(write(content), SCHEMA)["value"].to_list() == [1.0, 2.0]
    with pytest.raises(InputError, match=r"t\.csv, line 3: byte 0xe[89] is not UTF-8; save the file as UTF-8"):
        read_csv(write(content), SCHEMA, only_utf8=True)


def test_other_encodings_in_the_header_are_refused_too(write):
    with pytest.raises(InputError, match="line 1: byte 0xe9 is not UTF-8"):
        read_csv(write(b"name,value,\xe9\na,1,2\n"), SCHEMA, only_utf8=True)


def test_the_line_ends_of_old_macintosh_programs_are_refused(write):
    with pytest.raises(InputError, match="end with a carriage return alone"):
        read_csv(write("name,value\ra,1\r"), SCHEMA)
    with pytest.raises(InputError, match="end with a carriage return alone"):
        read_csv(write('name,value\r"a",1\r'), SCHEMA)
    assert read_csv(write('name,value,"a\rb"\na,1,2\n'), SCHEMA)["value"].to_list() == [1.0]
    assert read_csv(write("name,value\r\na,1\r\n"), SCHEMA).rows() == [("a", 1.0, 2)]


def test_an_empty_file_names_what_is_needed_only(write):
    for content in ("", "\n\n"):
        with pytest.raises(InputError, match="empty file; expected a header with name$"):
            read_csv(write(content), SCHEMA, optional=["value"])


def test_a_header_of_any_length_ends_in_a_message(write):
    with pytest.raises(InputError, match="not the header of a table"):
        read_csv(write("a" * 140_000 + "\n"), SCHEMA)
    with pytest.raises(InputError, match="line 2, column value"):
        read_csv(write("name,value\na," + "x" * 140_000 + "\n"), SCHEMA)
