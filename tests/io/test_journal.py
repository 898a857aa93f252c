import json
import os
from pathlib import Path

import pytest

from talstack.io.errors import WriteError
from talstack.io.journal import Attempt, JournalWriter, journal_paths, read_journal, read_journals

SHARDS = [("r0", "front", "rgb", "0123456789abcdef")]
ROW = {"recording": "r0", "outcome": "done"}


def write(root: Path, run: str = "run1") -> JournalWriter:
    journal = JournalWriter(root, run)
    journal.start("one", SHARDS)
    journal.end("one", [ROW])
    journal.start("two", SHARDS)
    return journal


def test_what_was_written_is_read(tmp_path: Path) -> None:
    journal = write(tmp_path)
    one, two = read_journals(tmp_path)
    assert (one.task, one.shards, one.rows, one.is_open) == ("one", tuple(SHARDS), (ROW,), False)
    assert one.worker == journal.path.name.removesuffix("-run1.jsonl") and one.worker.endswith(f"-{os.getpid()}")
    assert one.ended_s is not None and one.started_s <= one.ended_s <= two.started_s
    assert (two.task, two.is_open) == ("two", True)
    journal.end("two", [], error="InputError: no")
    assert not read_journals(tmp_path)[1].is_open


def test_runs_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path), write(tmp_path, "run2")
    assert len(journal_paths(tmp_path)) == 2
    assert [attempt.task for attempt in read_journals(tmp_path, "run2")] == ["one", "two"]
    assert read_journals(tmp_path, "run3") == []
    assert read_journals(tmp_path / "nothing") == []


def test_a_line_cut_anywhere_is_no_event_and_no_error(tmp_path: Path) -> None:
    path = write(tmp_path).path
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        num_events = sum(end - 1 <= length for end in ends)  # the line feed itself may be missing
        found = read_journal(path)
        assert (len(found), sum(not attempt.is_open for attempt in found)) == ((num_events + 1) // 2, num_events >= 2)
        assert all(not attempt.last_words for attempt in found)


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]", "17", "null", '{"event": "start"}', '{"event": "start", "task": "x", "shards": [["a"]], "at_s": 1}',
        '{"event": "end", "task": 3, "rows": [], "at_s": 1}', '{"event": "end", "task": "two", "rows": [3], "at_s": 1}',
        '{"event": "other", "task": "two", "rows": [], "at_s": 1}', "[" * 100_000,
    ],
)  # fmt: skip
def test_lines_of_another_kind_are_skipped(tmp_path: Path, line: str) -> None:
    path = write(tmp_path).path
    before = [attempt.task for attempt in read_journal(path)]
    with open(path, "a") as file:
        file.write(line + "\n")
    assert [attempt.task for attempt in read_journal(path)] == before
    assert read_journal(path)[-1].is_open


def test_last_words_belong_to_the_task_that_was_open(tmp_path: Path) -> None:
    journal = write(tmp_path)
    os.write(journal.fileno(), b"Fatal Python error: Segmentation fault\n\nThread 0x1\n")
    one, two = read_journal(journal.path)
    assert one.last_words == ""
    assert two.last_words.splitlines()[0] == "Fatal Python error: Segmentation fault"


def test_an_end_without_its_start_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path).path
    with open(path, "a") as file:
        file.write(json.dumps({"event": "end", "task": "three", "rows": [], "at_s": 1.0}) + "\n")
    assert [attempt.is_open for attempt in read_journal(path)] == [False, True]


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file in the place of the folder")
    with pytest.raises(WriteError, match="journal cannot be written"):
        JournalWriter(tmp_path, "run")
    journal = JournalWriter(tmp_path / "store", "run")
    journal.close()
    with pytest.raises(WriteError, match="Bad file descriptor"):
        journal.start("one", SHARDS)


def test_an_attempt_prints_without_its_last_words() -> None:
    assert "secret" not in repr(Attempt("t", (), "w", 0.0, last_words="secret"))
