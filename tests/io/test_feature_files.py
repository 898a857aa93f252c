"""Feature files: which belongs to which recording, and what is in them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.feature_export import fill_invalid, frame_clock
from talstack.io.feature_files import FeatureFile, find_feature_files, read_array, read_times_s, read_valid

WANTED = [("r0", ""), ("r1", ""), ("r2", "")]
VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def file_of(path: Path, key: str | None = None) -> FeatureFile:
    return FeatureFile(path, path.name, key)


def write(path: Path, values: np.ndarray = VALUES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, feats=values)
    elif path.suffix == ".csv":
        np.savetxt(path, values, delimiter=",", header=",".join(f"f{i}" for i in range(values.shape[1])), comments="")
    else:
        with h5py.File(path, "w") as file:
            file["c3d"] = values
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".h5", ".hdf5"])
def test_every_format_gives_the_same_numbers(tmp_path: Path, suffix: str) -> None:
    assert np.array_equal(read_array(file_of(write(tmp_path / f"r0{suffix}"))), VALUES)


def test_a_csv_needs_no_header_and_an_empty_field_is_missing(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("1,2\n3,\n")
    got = read_array(file_of(tmp_path / "r.csv"))
    assert np.array_equal(got, [[1, 2], [3, np.nan]], equal_nan=True)
    (tmp_path / "r.csv").write_text("a,b\n3,4\n5,six\n")
    with pytest.raises(InputError, match="line 3, column 2: expected a number, got 'six'"):
        read_array(file_of(tmp_path / "r.csv"))


def test_what_is_no_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "cut.npy").write_bytes(write(tmp_path / "whole.npy").read_bytes()[:-5])
    (tmp_path / "cut.npz").write_bytes(write(tmp_path / "whole.npz").read_bytes()[:60])
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink("elsewhere.h5", "/x")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("x", shape=(10**9, 10**4), dtype="f4", chunks=(1, 10**4))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 3), "f4")
        layout[:] = h5py.VirtualSource("gone.h5", "c3d", (4, 3))
        file.create_virtual_dataset("x", layout)
    refused = 0
    for name, match in {
        "object.npy": "pickles are never loaded", "text.npy": "expected an array of numbers", "cut.npy": "cut.npy: not",
        "cut.npz": "cut.npz: not", "link.h5": "several arrays", "huge.h5": "more than the file can hold",
        "virtual.h5": "not a plain data set",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=match):
            read_array(file_of(tmp_path / name))
        refused += 1
    with pytest.raises(InputError, match="leads elsewhere by a link"):
        read_array(file_of(tmp_path / "link.h5", "x"))
    print(f"{refused + 1} of 8 strangers refused")


def test_an_array_must_be_named_where_several_could_be_meant(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", rgb=VALUES, flow=2 * VALUES)
    with pytest.raises(InputError, match=r"several arrays; there: rgb, flow; give --key"):
        read_array(file_of(tmp_path / "r.npz"))
    assert np.array_equal(read_array(file_of(tmp_path / "r.npz", "flow")), 2 * VALUES)


def test_files_and_recordings_that_do_not_meet_are_listed(tmp_path: Path) -> None:
    for name in ("r0.npy", "r1.npy", "stray.npy"):
        write(tmp_path / name)
    found = find_feature_files(tmp_path, WANTED)
    assert sorted(found.files) == [("r0", ""), ("r1", "")]
    assert found.without_file == (("r2", ""),)
    assert found.without_recording == ("stray.npy",)


def test_names_of_activitynet_and_of_video_features_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a" / "v_r0.csv")
    assert find_feature_files(tmp_path / "a", WANTED).pattern == "v_{recording}.csv"
    for name in ("r0_resnet.npy", "r0_timestamps_ms.npy", "r0_fps.npy"):
        write(tmp_path / "b" / name)
    assert find_feature_files(tmp_path / "b", WANTED).pattern == "{recording}_resnet.npy"
    write(tmp_path / "b" / "r0_clip.npy")
    with pytest.raises(InputError, match=r"several patterns fit: \{recording\}_clip.npy, \{recording\}_resnet.npy"):
        find_feature_files(tmp_path / "b", WANTED)


def test_one_hdf5_file_holds_all_recordings(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["r0/c3d"], file["r1/c3d"], file["stray/c3d"] = VALUES, 2 * VALUES, VALUES
    found = find_feature_files(tmp_path / "all.h5", WANTED, pattern="{recording}/c3d")
    assert np.array_equal(read_array(found.files["r1", ""]), 2 * VALUES)
    assert found.without_recording == ("stray/c3d",)


def test_a_pattern_that_fits_nothing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "video_1.npy")
    for pattern, match in (
        (None, "no file is named after a recording; there: video_1.npy"), ("{recording}.npy", "no file fits"),
        ("{video}.npy", r"expected \{recording\} or \{clip\}"), ("x.npy", r"expected \{recording\}"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            find_feature_files(tmp_path, WANTED, pattern=pattern)
    with pytest.raises(InputError, match="several clips per recording"):
        find_feature_files(tmp_path, [("r0", "a"), ("r0", "b")], pattern="{recording}.npy")
    with pytest.raises(MissingInputError, match="no such folder"):
        find_feature_files(tmp_path / "none", WANTED)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.npy")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "r0.npy").symlink_to(outside)
    with pytest.raises(InputError, match="leads out of the data root"):
        find_feature_files(tmp_path / "in", WANTED)


def test_timestamps_of_frames_and_of_stacks(tmp_path: Path) -> None:
    np.save(tmp_path / "r0_timestamps_ms.npy", np.array([640.0, 1280.0, 1920.0, 2560.0]))
    frames, stacks = (file_of(write(tmp_path / f"r0_{kind}.npy")) for kind in ("resnet", "rgb"))
    assert read_times_s(frames, 4) == pytest.approx([0.64, 1.28, 1.92, 2.56])
    assert read_times_s(stacks, 4) == pytest.approx([0.32, 0.96, 1.6, 2.24])  # middles of 0.64 s stacks
    assert read_times_s(stacks, 4, window_s=0.2) == pytest.approx([0.54, 1.18, 1.82, 2.46])
    with pytest.raises(InputError, match=r"expected \(5,\) numbers"):
        read_times_s(frames, 5)
    assert read_times_s(file_of(write(tmp_path / "r1_r21d.npy")), 4) is None


def test_the_mask_beside_an_exported_file_is_read(tmp_path: Path) -> None:
    file, mask = file_of(write(tmp_path / "r0.npy")), np.array([True, False, True, True])
    assert read_valid(file, 4).all()
    write(tmp_path / "valid" / "r0.npy", mask)
    assert np.array_equal(read_valid(file, 4), mask)
    assert len(file.files) == 2


def test_invalid_rows_become_what_was_asked_for() -> None:
    valid = np.array([False, True, False, False, True])
    values = np.arange(5, dtype=np.float16)[:, None]
    assert fill_invalid(values, valid, "nearest").ravel().tolist() == [1, 1, 1, 4, 4]
    assert fill_invalid(values, valid, "zero").ravel().tolist() == [0, 1, 0, 0, 4]
    assert np.isnan(fill_invalid(values, valid, "nan")).ravel().tolist() == (~valid).tolist()


@pytest.mark.parametrize("segment_s", [0.04, 0.5, 1.0, 1.6, 10.0])
def test_a_segment_is_an_even_number_of_frames(segment_s: float) -> None:
    stride_frames, fps = frame_clock(segment_s)
    assert stride_frames % 2 == 0
    assert stride_frames / fps == pytest.approx(segment_s)
