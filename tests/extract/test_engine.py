import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.engine import extract_clip_group, probe_network
from talstack.extract.plan import ExtractionPlan, plan_extraction
from talstack.extract.schedule import run_items
from talstack.io.errors import ConfigError, InputError, MissingInputError
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest

SAMPLING = SamplingConfig(segment_s=1.0, frames_per_segment=4, frame_size=32)
CONFIG = ExtractConfig(init="random", init_arch="resnet18_narrow", batch_segments=2, runtime="folded")


def plan(data: Path, store: Path, **changes: object) -> ExtractionPlan:
    return plan_extraction(data, store, **{"config": CONFIG, "sampling": SAMPLING, **changes})


def extract(data: Path, store: Path, *, jobs: int = 1, **changes: object) -> list:
    planned = plan(data, store, **changes)
    keys = planned.part((1, 1))
    rows = planned.finished_rows(keys) + run_items(planned.items(planned.missing(keys), jobs), jobs=jobs)
    planned.extraction.save(store)
    return rows


def shards(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("[!.]*.h5"))}


def test_every_view_and_modality_is_extracted(toy_data: Path, tmp_path: Path) -> None:
    rows = extract(toy_data, tmp_path / "store")
    assert len(rows) == 4 * (2 + 2 + 1)  # rgb and audio of two views, one sensor
    assert {row.outcome for row in rows} == {"done"}
    features = FeatureSet.open(Manifest.load(toy_data), tmp_path / "store")
    expected = [("ego", "audio"), ("ego", "rgb"), ("external", "sensor"), ("front", "audio"), ("front", "rgb")]
    assert features.groups == expected
    front = features.read("r0", "front", "rgb")
    assert front.features.shape == (4, 256)
    assert front.valid.all()
    assert front.logits is None


def test_a_late_clip_fills_only_the_segments_it_covers(toy_data: Path, tmp_path: Path) -> None:
    extract(toy_data, tmp_path / "store", modalities=["rgb", "audio"])
    features = FeatureSet.open(Manifest.load(toy_data), tmp_path / "store")
    for modality in ("rgb", "audio"):  # the clip covers 1.2 s to 3.8 s
        shard = features.read("r0", "ego", modality)
        assert shard.aligned
        assert shard.valid.tolist() == [False, True, True, True]
        assert not shard.features[0].any()


def test_clips_at_unknown_offsets_keep_their_own_clock(toy_data: Path, tmp_path: Path) -> None:
    extract(toy_data, tmp_path / "store", modalities=["rgb"])
    shard = FeatureSet.open(Manifest.load(toy_data), tmp_path / "store").read("r3", "ego", "rgb")
    assert not shard.aligned
    assert len(shard.features) == 3  # 2.6 s at 1 s
    assert shard.valid.all()


def test_a_second_run_opens_nothing(toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(toy_data, tmp_path / "store")
    before = shards(tmp_path / "store")
    monkeypatch.setattr("talstack.io.store.sha256_file", lambda path: pytest.fail(f"{path} read again"))
    monkeypatch.setattr("talstack.extract.layout.probe", lambda path: pytest.fail(f"{path} opened again"))
    assert {row.outcome for row in extract(toy_data, tmp_path / "store")} == {"cached"}
    assert shards(tmp_path / "store") == before


def test_processes_and_batches_do_not_change_the_features(toy_data: Path, tmp_path: Path) -> None:
    extract(toy_data, tmp_path / "one", modalities=["audio", "sensor"])
    extract(toy_data, tmp_path / "two", modalities=["audio", "sensor"], jobs=2)
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    for size in (1, 3):
        config = ExtractConfig(init="random", init_arch="resnet18_narrow", batch_segments=size)
        extract(toy_data, tmp_path / f"b{size}", modalities=["rgb"], config=config)
    one, three = (FeatureSet.open(Manifest.load(toy_data), tmp_path / f"b{size}") for size in (1, 3))
    a, b = (f.read("r0", "front", "rgb").features.astype(np.float32) for f in (one, three))
    assert np.abs(a - b).max() <= 2e-3 * np.abs(a).max()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_engine
test_engine.extract(Path({data!r}), Path({store!r}))
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(toy_data: Path, tmp_path: Path) -> None:
    extract(toy_data, tmp_path / "calm")
    store = tmp_path / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), data=str(toy_data), store=str(store))
    kept = []
    for wanted in (1, 6, 12):
        process = subprocess.Popen([sys.executable, "-P", "-c", code])
        deadline = time.monotonic() + 120
        while len(shards(store)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        time.sleep(1.0)  # its worker ends as soon as it sees that it is alone
        kept.append(len(shards(store)))
    outcomes = [row.outcome for row in extract(toy_data, store)]
    assert kept[0] >= 1
    assert outcomes.count("cached") == kept[-1], "what was committed is not computed again"
    assert shards(store) == shards(tmp_path / "calm")


def test_parts_together_are_the_whole(toy_data: Path, tmp_path: Path) -> None:
    planned = plan(toy_data, tmp_path / "store")
    parts = [planned.part((i, 3)) for i in (1, 2, 3)]
    assert sorted(key.fingerprint for part in parts for key in part) == sorted(key.fingerprint for key in planned.keys)


def test_a_broken_clip_is_a_recorded_failure_and_the_rest_goes_on(
    toy_data: Path, toy_media: Path, tmp_path: Path
) -> None:
    content = (toy_media / "front1.mp4").read_bytes()
    try:
        (toy_media / "front1.mp4").write_bytes(b"<html>404</html>")
        rows = extract(toy_data, tmp_path / "store", modalities=["rgb"])
        failed = [row for row in rows if row.outcome == "failed"]
        assert [(row.recording, row.view) for row in failed] == [("r1", "front")]
        assert "front1.mp4" in failed[0].reason
        again = [row for row in extract(toy_data, tmp_path / "store", modalities=["rgb"]) if row.outcome == "failed"]
        assert again[0].reason == failed[0].reason
    finally:
        (toy_media / "front1.mp4").write_bytes(content)
    # the repaired file has another content hash, so it is a miss and not a remembered failure
    assert {row.outcome for row in extract(toy_data, tmp_path / "store", modalities=["rgb"])} == {"cached", "done"}
    features = FeatureSet.open(Manifest.load(toy_data), tmp_path / "store")
    assert features.read("r1", "front", "rgb") is not None


def test_a_damaged_shard_never_reads_as_data(toy_data: Path, tmp_path: Path) -> None:
    from talstack.io.errors import StoreError

    extract(toy_data, tmp_path / "store", modalities=["sensor"])
    features = FeatureSet.open(Manifest.load(toy_data), tmp_path / "store")
    for path in (tmp_path / "store").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["features"][0, 0] += 1
    with pytest.raises(StoreError, match="does not match its checksum"):
        features.read("r0", "external", "sensor")


def test_what_the_data_set_lacks_is_refused(toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="view 'side' is not in toy; views: ego, front"):
        plan(toy_data, tmp_path, views=["side"])
    with pytest.raises(InputError, match="modality 'depth' is not in toy; modalities: rgb, rgbdiff, audio, sensor"):
        plan(toy_data, tmp_path, modalities=["depth"])
    with pytest.raises(ConfigError, match="segment_s must be > 0"):
        SamplingConfig(segment_s=0)


@pytest.mark.parametrize(
    "change",
    [{"segment_s": 0.5}, {"frames_per_segment": 8}, {"frame_size": 64}],
)
def test_other_settings_are_a_miss(toy_data: Path, tmp_path: Path, change: dict) -> None:
    extract(toy_data, tmp_path / "store", modalities=["rgb"], views=["front"])
    values = {"segment_s": 1.0, "frames_per_segment": 4, "frame_size": 32}
    other = plan(
        toy_data,
        tmp_path / "store",
        modalities=["rgb"],
        views=["front"],
        sampling=SamplingConfig(**{**values, **change}),
    )
    assert len(other.missing(other.keys)) == len(other.keys) == 4


def test_missing_weights_stop_the_run_and_blame_no_recording(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    config = ExtractConfig(init="imagenet", init_arch="resnet18", modalities=("rgb",))
    planned = plan(toy_data, tmp_path / "store", config=config)
    with pytest.raises(MissingInputError, match="ImageNet weights of resnet18 could not be loaded"):
        extract_clip_group(planned.items(planned.keys, 1)[0])
    assert planned.missing(planned.keys) == list(planned.keys), "nothing is recorded as failed"


def test_what_gives_nothing_says_why(toy_data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, panoramic=("front",), cameras=4)
    with pytest.raises(InputError, match=r"no audio of front@yaw090; the sound of a piece is .*--view front"):
        plan(toy_data, tmp_path / "store", config=config, views=["front@yaw090"], modalities=["audio"])


def test_the_probe_computes_and_stores_nothing(toy_data: Path, tmp_path: Path) -> None:
    planned = plan(toy_data, tmp_path / "store")
    item = planned.items(planned.keys, 1)[0]
    assert probe_network(item) == [] and planned.missing(planned.keys) == list(planned.keys)
