"""What lies in a store: kinds of files, summaries by recipe."""

import os
from pathlib import Path

import numpy as np
import pytest

from talstack.io.errors import InputError, MissingInputError
from talstack.io.extraction import Extraction
from talstack.io.shard import Shard, ShardKey
from talstack.io.store import FeatureStore
from talstack.io.store_contents import read_entry, scan_store
from talstack.io.store_summary import summarise

RGB = {"kind": "rgb", "backbone": {"arch": "resnet18", "weights_sha256": "ab" * 32}}
AUDIO = {"kind": "audio", "mels": 4}


def make_key(**changes: object) -> ShardKey:
    values = {
        "recording": "rec-1", "view": "third-person", "modality": "rgb", "recipe": RGB,
        "sources": ({"name": "clip", "sha256": "0" * 64, "offset_s": 0.0},), "duration_s": 3.0, "segment_s": 1.0,
    }  # fmt: skip
    return ShardKey(**{**values, **changes})


def make_shard() -> Shard:
    return Shard(np.ones((3, 2), np.float16), np.ones(3, bool), np.arange(3) + 0.5)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Return a store with two rgb shards, an audio shard, a failure, a record, and leftovers of five kinds."""
    store = FeatureStore(tmp_path / "store")
    for recording in ("rec-1", "rec-2"):
        store.write(make_key(recording=recording), make_shard())
    store.write(make_key(modality="audio", recipe=AUDIO), make_shard())
    store.record_failure(make_key(recording="rec-3"), "moov atom missing")
    Extraction("toy", 1.0, {"rgb": RGB}, ("third-person",)).save(store.root)
    folder = store.path_of(make_key()).parent
    (folder / ".tmp-abc.h5").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (store.root / "quarantine").mkdir()
    (store.root / "quarantine" / "x.h5").write_bytes(b"bad")
    (store.root / ".gc-0123456789abcdef").mkdir()
    (folder / "third-person-rgb-0123456789abcdef.h5").symlink_to("/etc/hostname")
    os.mkfifo(folder / "third-person-rgb-0123456789abcde0.h5")
    return store


def test_files_are_told_apart_by_place_and_name(store: FeatureStore) -> None:
    contents = scan_store(store.root)
    counts = {kind: len(contents.of_kind(kind)) for kind in ("shard", "failure", "recipe", "extraction", "temporary")}
    assert counts == {"shard": 3, "failure": 1, "recipe": 2, "extraction": 1, "temporary": 1}
    assert [file.path.name for file in contents.of_kind("quarantined")] == ["x.h5"]
    foreign = sorted(file.path.name for file in contents.of_kind("foreign"))
    assert foreign == ["notes.txt", "third-person-rgb-0123456789abcde0.h5", "third-person-rgb-0123456789abcdef.h5"]
    assert [path.name for path in contents.interrupted] == [".gc-0123456789abcdef"]


def test_summaries_count_by_view_and_modality_and_name_the_extractions(store: FeatureStore) -> None:
    os.utime(store.path_of(make_key()), (1000.0, 1000.0))
    audio, rgb = summarise(scan_store(store.root))
    assert (rgb.kind, rgb.backbone, rgb.segment_s) == ("rgb", "resnet18 abababab", (1.0,))
    assert dict(rgb.groups) == {"third-person/rgb": 2}
    assert (rgb.num_shards, rgb.num_failures, rgb.num_unreadable) == (2, 1, 0)
    assert (rgb.oldest_s, rgb.extractions) == (1000.0, ("toy",))
    assert (audio.kind, audio.backbone, audio.extractions) == ("audio", "", ())


def test_an_unreadable_shard_is_counted_and_says_why(store: FeatureStore) -> None:
    path = store.path_of(make_key())
    path.write_bytes(path.read_bytes()[:100])
    (entry,) = [read_entry(file) for file in scan_store(store.root).of_kind("shard") if file.path == path]
    assert entry.identity is None and "not a readable shard" in entry.reason
    assert summarise(scan_store(store.root))[1].num_unreadable == 1


def test_a_damaged_record_is_refused(store: FeatureStore) -> None:
    (store.root / "extractions" / "toy.json").write_text('{"name": "toy"}')
    with pytest.raises(InputError, match="not a readable record"):
        summarise(scan_store(store.root))


def test_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such folder"):
        scan_store(tmp_path / "nowhere")
