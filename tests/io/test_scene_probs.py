import polars as pl
import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.scene_probs import read_scene_probs

SCENES = ("kitchen", "street", "park")
FRAME = pl.DataFrame({"recording": ["a", "b"], "kitchen": [0.5, 0.0], "street": [0.25, 1.0], "park": [0.25, 0.0]})


def test_both_formats_give_the_same_sorted_table_by_name(tmp_path):
    FRAME.reverse().select("park", "recording", "street", "kitchen").write_parquet(tmp_path / "scene.parquet")
    (tmp_path / "scene.csv").write_text("id,0,1,2\nb,0,1,0\na,0.5,0.25,0.25\n\n")
    (tmp_path / "swapped.csv").write_text("\ufeffid, 2,0,1\na,0.25,0.5,0.25\nb,0,0,1\n", encoding="utf-8")
    for name in ("scene.parquet", "scene.csv", "swapped.csv"):
        found = read_scene_probs(tmp_path / name, scenes=SCENES)
        assert found.equals(FRAME), name
        assert found.schema == FRAME.schema


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,0,1,2\na,0,1,0\nb,0,nan,0\n", r"line 3, column 1: expected a finite number of at least 0, got nan"),
        ("id,0,1,2\na,0,1,inf\n", r"line 2, column 2: .* got inf"),
        ("id,0,1,2\na,-0.1,1,0\n", r"line 2, column 0: .* got -0.1"),
        ("id,0,1,2\na,,1,0\n", r"line 2, column 0: expected Float64, got an empty value"),
        ("id,0,1,2\na,0,x,0\n", r"line 2, column 1: expected Float64, got 'x'"),
        ("id,0,1,2\na,0,1,0\nb,0,1,0\na,1,0,0\n", r"line 4: 'a' appears more than once"),
        ("id,0,1\na,0,1\n", r"missing column '2', 3 columns found; expected id and 3 scenes, '0' to '2'"),
        ("id,0,1,2,3\na,0,1,0,0\n", r"surplus column '3', 5 columns found"),
        ("id,0,1,1,2\na,0,1,0,0\n", r"surplus column '1'"),
        ("recording,0,1,2\na,0,1,0\n", r"missing column 'id'"),
        ("id,0,1,2\na,0,1,0\nb,0,1\n", r"line 3: 3 values, expected 4"),
        ("id,0,1,2\na,0,1,0\nb,0,1,0,9\n", r"line 3: 5 values, expected 4"),
        ("", r"missing column 'id'"),
        (f"id,0,1,2\na,{'9' * 140_000},1,0\n", r"line 2: not a line of scene predictions: field larger"),
        (b"id,0,1,2\na,0,1,0\n\xe9,0,1,0\n", r"line 3: byte 0xe9 is not UTF-8"),
    ],
    ids=range(15),
)
def test_csv_errors_name_file_line_and_column(tmp_path, text, message):
    (tmp_path / "scene.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"scene\.csv.*" + message):
        read_scene_probs(tmp_path / "scene.csv", scenes=SCENES)


def test_recordings_of_a_parquet_file_may_be_categories_and_padded(tmp_path):
    table = FRAME.with_columns((pl.col("recording") + " ").cast(pl.Categorical))
    table.write_parquet(tmp_path / "scene.parquet")
    found = read_scene_probs(tmp_path / "scene.parquet", scenes=SCENES)
    assert found.equals(FRAME)
    assert found.schema == FRAME.schema


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (FRAME.with_columns(street=pl.Series([1.0, float("nan")])), r"row 1 \(counted from 0\), column street: .* nan"),
        (FRAME.with_columns(street=pl.Series([None, 1.0])), r"row 0 \(counted from 0\), column street: .* None"),
        (FRAME.with_columns(recording=pl.Series(["a", "a"])), r"row 1 \(counted from 0\): 'a' appears more than once"),
        (FRAME.with_columns(recording=pl.Series(["a", None])), r"row 1 \(counted from 0\): None has no recording"),
        (FRAME.with_columns(street=pl.lit("x")), r"column street: expected numbers, got String"),
        (FRAME.with_columns(recording=pl.lit(1)), r"column recording: expected texts"),
        (FRAME.drop("park"), r"missing column 'park'"),
        (FRAME.with_columns(moon=pl.lit(0.0)), r"surplus column 'moon'"),
    ],
)
def test_parquet_errors_name_file_row_and_column(tmp_path, table, message):
    table.write_parquet(tmp_path / "scene.parquet")
    with pytest.raises(InputError, match=r"scene\.parquet.*" + message):
        read_scene_probs(tmp_path / "scene.parquet", scenes=SCENES)


def test_files_that_are_none(tmp_path):
    with pytest.raises(MissingInputError, match="no such file of scene predictions"):
        read_scene_probs(tmp_path / "none.csv", scenes=SCENES)
    (tmp_path / "scene.parquet").write_text("no")
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_scene_probs(tmp_path / "scene.parquet", scenes=SCENES)
    (tmp_path / "scene.txt").write_text("no")
    with pytest.raises(InputError, match=r"must be \.parquet or \.csv"):
        read_scene_probs(tmp_path / "scene.txt", scenes=SCENES)
    with pytest.raises(InputError, match="has no scenes"):
        read_scene_probs(tmp_path / "scene.txt", scenes=())
