import json
import shutil

import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.runs import data_of, record_data, split_of


@pytest.fixture
def run(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    return tmp_path / "runs" / "first"


def test_a_run_remembers_its_data_and_keeps_the_rest(run, tmp_path):
    (run / "provenance.json").write_text('{"seed": 3}')
    record_data(run, tmp_path / "data")
    assert data_of(run) == tmp_path / "data"
    assert json.loads((run / "provenance.json").read_text()) == {"seed": 3, "data": "../../data"}


def test_a_run_that_moves_with_its_data_finds_it(run, tmp_path):
    record_data(run, tmp_path / "data")
    shutil.copytree(tmp_path, tmp_path.parent / "elsewhere")
    assert data_of(tmp_path.parent / "elsewhere" / "runs" / "first") == tmp_path.parent / "elsewhere" / "data"


def test_refuses_where_nothing_is_said_or_there(run, tmp_path):
    with pytest.raises(MissingInputError, match="does not say which data"):
        data_of(run)
    record_data(run, tmp_path / "data")
    (tmp_path / "data").rmdir()
    with pytest.raises(MissingInputError, match="is not there; name the ground truth"):
        data_of(run)


@pytest.mark.parametrize("text", ["[]", '{"data": 3}'])
def test_refuses_a_foreign_file(run, text):
    (run / "provenance.json").write_text(text)
    with pytest.raises(InputError, match="provenance.json"):
        data_of(run)


def test_the_split_of_the_detections(run):
    assert split_of(run) == "test"
    (run / "provenance.json").write_text('{"submit": {"split": "val"}}')
    assert split_of(run) == "val"
