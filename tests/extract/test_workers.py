from pathlib import Path

import pytest

from talstack.extract.workers import Workers, available_bytes, choose_workers, count_gpus, visible_devices

GB = 1_000_000_000


@pytest.mark.parametrize(
    ("num_items", "options", "expected"),
    [
        (100, {"cores": 8}, (8, 1)),
        (3, {"cores": 8}, (3, 2)),  # fewer items than cores: threads
        (1, {"cores": 8}, (1, 8)),
        (100, {"cores": 8, "jobs": 2}, (2, 4)),
        (100, {"cores": 8, "jobs": 32}, (32, 1)),  # as asked
        (100, {"cores": 8, "process_bytes": 2 * GB, "memory_bytes": 7 * GB}, (3, 2)),
        (100, {"cores": 8, "process_bytes": 2 * GB, "memory_bytes": GB}, (1, 8)),
        (100, {"cores": 8, "jobs": 8, "process_bytes": 2 * GB, "memory_bytes": GB}, (8, 1)),
        (100, {"cores": 16, "num_gpus": 4}, (4, 4)),
        (100, {"cores": 16, "num_gpus": 1}, (4, 4)),
        (100, {"cores": 64, "num_gpus": 2}, (8, 8)),
        (100, {"cores": 6, "num_gpus": 1}, (1, 6)),
        (100, {"cores": 16, "num_gpus": 4, "jobs": 8}, (8, 2)),
        (0, {"cores": 4}, (1, 4)),
    ],
)
def test_cores_are_used_once(num_items: int, options: dict, expected: tuple[int, int]) -> None:
    made = choose_workers(num_items, **options)
    assert (made.jobs, made.threads) == expected


def test_every_process_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = choose_workers(100, num_gpus=2, jobs=3, cores=4)
    assert [made.device(number) for number in range(3)] == ["0", "1", "0"]
    assert choose_workers(100, num_gpus=1, cores=4).device(0) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 5")
    assert visible_devices(2) == ("GPU-a", "5")
    assert Workers(2).device(0) is None


def test_what_is_free_is_the_least_that_machine_and_container_have(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:   5000 kB\n")
    assert available_bytes(meminfo=meminfo, cgroup=tmp_path) == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_bytes(meminfo=meminfo, cgroup=tmp_path) == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    assert available_bytes(meminfo=meminfo, cgroup=tmp_path) == 2000
    assert available_bytes(meminfo=tmp_path / "none", cgroup=tmp_path / "none") is None


def test_without_device_files_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talstack.extract.workers._DEVICES", tmp_path)
    assert count_gpus() == 0
