import subprocess
import sys
import time
from pathlib import Path

from talstack.extract import watchdog

WORKER = """
import sys, time
from talstack.extract import watchdog
file = open(sys.argv[1], "wb")
watchdog.allow(file.fileno())
{body}
print("alive")
"""


def run(tmp_path: Path, body: str) -> tuple[int, str, str]:
    command = [sys.executable, "-P", "-c", WORKER.format(body=body), str(tmp_path / "report")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.strip(), (tmp_path / "report").read_text()


def test_without_a_beat_the_process_ends_and_says_where_it_stood(tmp_path: Path) -> None:
    body = "def slow():\n    time.sleep(30)\nwith watchdog.watched(0.3):\n    slow()"
    code, said, report = run(tmp_path, body)
    assert (code, said) == (1, "")
    assert report.startswith("Timeout (")
    assert "in slow" in report


def test_beats_keep_it_alive_longer_than_the_limit(tmp_path: Path) -> None:
    body = "with watchdog.watched(0.6) as beat:\n    for _ in range(10):\n        time.sleep(0.1)\n        beat()"
    assert run(tmp_path, body)[:2] == (0, "alive")


def test_a_beat_of_another_thread_counts_and_one_afterwards_sets_nothing(tmp_path: Path) -> None:
    body = (
        "import threading\n"
        "def decode():\n    [(time.sleep(0.1), watchdog.beat()) for _ in range(14)]\n"
        "thread = threading.Thread(target=decode)\n"
        "with watchdog.watched(0.5):\n    thread.start()\n    time.sleep(0.9)\n"
        "thread.join()\ntime.sleep(0.8)"
    )
    assert run(tmp_path, body)[:2] == (0, "alive")


def test_the_outer_limit_holds_again_after_an_inner_one(tmp_path: Path) -> None:
    inner = "    with watchdog.watched(5):\n        time.sleep(0.8)\n    print('inner', flush=True)\n"
    body = f"with watchdog.watched(0.4):\n{inner}    time.sleep(30)"
    assert run(tmp_path, body)[:2] == (1, "inner")


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert run(tmp_path, "with watchdog.watched(0):\n    time.sleep(0.5)")[:2] == (0, "alive")


def test_this_process_is_no_worker_and_is_left_alone() -> None:
    with watchdog.watched(0.1) as beat:
        time.sleep(0.3)
        beat()


def test_places_are_those_of_the_program_and_not_of_the_library() -> None:
    report = (
        "Timeout (0:00:01)!\n"
        'Thread 0x1 (most recent call first):\n  File "/usr/lib/python3.11/threading.py", line 1 in wait\n'
        '  File "/x/extract/frames.py", line 7 in decode\n\n'
        'Thread 0x2 (most recent call first):\n  File "/usr/lib/python3.11/queue.py", line 2 in get\n'
        '  File "/x/site-packages/joblib/parallel.py", line 3 in __call__\n\n'
        'Thread 0x3 (most recent call first):\n  File "/v/lib/python3.11/site-packages/av/x.py", line 9 in seek\n'
    )
    assert watchdog.places(report) == ["decode (frames.py line 7)", "seek (x.py line 9)"]
