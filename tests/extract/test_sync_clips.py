"""Placing the clips of a manifest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.extract.sync import RATE
from talstack.extract.sync_clips import sync_recordings
from talstack.extract.sync_plan import SyncSettings, plan_sync
from talstack.extract.sync_record import ClipSync, load_record, save_offsets
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table


def bursts(seed: int, seconds: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 1, round(seconds * 8)) ** 3, RATE // 8)
    return (0.1 * loudness * rng.normal(size=len(loudness))).astype(np.float32)


WORLD, OTHER = bursts(0, 16), bursts(1, 16)


@pytest.fixture
def make(tmp_path, write_clip):
    """Return the function that writes sounds to files and gives their manifest."""

    def made(*clips: tuple[str, float | None, np.ndarray | str | None], length_s: float = 10.0) -> Manifest:
        """Take recording/view/clip, offset, and the samples, "broken", or None for no sound track."""
        rows = []
        for name, offset_s, sound in clips:
            recording, view, clip = name.split("/")
            path = tmp_path / "media" / recording / view / f"{clip}.mkv"
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(sound, np.ndarray):
                write_clip(path, stamps_s=(), sound=sound[None], sound_rate=RATE)
            elif isinstance(sound, str):
                path.write_bytes(b"no clip")
            duration_s = len(sound) / RATE if isinstance(sound, np.ndarray) else length_s
            relative = path.relative_to(tmp_path / "media").as_posix()
            audio = None if isinstance(sound, str) else sound is not None
            rows.append((recording, view, clip, relative, offset_s, duration_s, None, None, None, audio))
        table = pl.DataFrame(rows, schema=SCHEMAS["clips"], orient="row")
        recordings = [(name, length_s, None, "train") for name in table["recording"].unique().sort()]
        return Manifest(
            "sync", tmp_path / "media", (), (), pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"),
            table, empty_table("instances"),
        )  # fmt: skip

    return made


def piece(start_s: float, end_s: float, *, of: np.ndarray = WORLD) -> np.ndarray:
    return of[round(start_s * RATE) : round(end_s * RATE)]


def synced(manifest: Manifest, folder: Path | None = None, *, jobs: int = 1, **settings) -> dict[str, ClipSync]:
    chosen = SyncSettings(**settings)
    record = load_record(folder or manifest.media_root)
    rows = sync_recordings(plan_sync(manifest, record, chosen), chosen, jobs=jobs)
    if folder:
        save_offsets(folder, manifest, rows)
    return {f"{row.recording}/{row.view}/{row.clip}": row for row in rows}


def outcomes(rows: dict[str, ClipSync]) -> dict[str, str]:
    return {name: row.outcome for name, row in rows.items()}


def test_every_kind_of_clip_ends_with_its_own_outcome(make) -> None:
    manifest = make(
        ("r/front/a", 2.0, piece(0, 10)),
        ("r/ego/here", None, 0.1 * piece(4, 9)),
        ("r/ego/early", None, WORLD[:0:-1][: 5 * RATE]),
        ("r/ego/elsewhere", None, piece(0, 8, of=OTHER)),
        ("r/ego/mute", None, None),
        ("r/ego/broken", None, "broken"),
        ("r/ego/silent", None, np.zeros(5 * RATE, np.float32)),
        ("alone/ego/a", None, piece(0, 5)),
        ("alone/front/b", 0.0, None),
        ("known/front/a", 0.0, piece(0, 5)),
    )
    rows = synced(manifest)
    assert outcomes(rows) == {
        "r/ego/here": "placed", "r/ego/early": "unsure", "r/ego/elsewhere": "unsure", "r/ego/mute": "no sound",
        "r/ego/broken": "failed", "r/ego/silent": "still", "alone/ego/a": "no reference",
    }  # fmt: skip
    here = rows["r/ego/here"]
    assert here.estimate_s == pytest.approx(6.0, abs=0.004)  # the reference begins at 2 s
    assert (here.reference, here.known_s) == ("front/a", None)
    assert "broken.mkv" in rows["r/ego/broken"].reason


def test_a_clip_of_sound_before_and_after_the_recording(make) -> None:
    manifest = make(
        ("r/front/a", 0.0, piece(5, 12)), ("r/ego/all", None, WORLD), ("r/ego/before", None, piece(2, 8))
    )  # fmt: skip
    rows = synced(manifest)
    assert rows["r/ego/all"].estimate_s == pytest.approx(-5.0, abs=0.004)
    assert rows["r/ego/before"].estimate_s == pytest.approx(-3.0, abs=0.004)
    assert set(outcomes(rows).values()) == {"placed"}


def test_an_unreadable_reference_is_listed_and_the_next_one_serves(make) -> None:
    manifest = make(
        ("r/front/a", 0.0, "broken"), ("r/side/b", 1.0, piece(1, 9)), ("r/ego/c", None, piece(3, 8))
    )  # fmt: skip
    rows = synced(manifest)
    assert outcomes(rows) == {"r/front/a": "failed", "r/ego/c": "placed"}
    assert rows["r/ego/c"].estimate_s == pytest.approx(3.0, abs=0.004)


def test_references_that_disagree_leave_the_clip_where_it_is(make) -> None:
    references = [("r/front/a", 0.0, piece(0, 9)), ("r/side/b", 3.0, piece(0, 8))]
    row = synced(make(*references, ("r/ego/c", None, piece(2, 7))))["r/ego/c"]
    assert row.outcome == "contradictory"
    assert " says " in row.reason


def test_two_references_outvote_a_clearer_one(make) -> None:
    noise = 0.05 * np.random.default_rng(2).normal(size=(2, 16 * RATE)).astype(np.float32)
    references = [
        (f"r/{view}/a", 1.0, piece(1, 9, of=WORLD + n)) for view, n in zip(("top", "front"), noise, strict=True)
    ]
    rows = synced(make(*references, ("r/side/b", 3.0, piece(0, 8)), ("r/ego/c", None, piece(2, 7))))
    assert rows["r/ego/c"].estimate_s == pytest.approx(2.0, abs=0.004)
    assert (rows["r/ego/c"].outcome, rows["r/ego/c"].reason) == ("placed", "side/b says 5.000 s")
    alone = synced(make(references[0], ("r/ego/c", None, piece(2, 7))))["r/ego/c"]
    clear = synced(make(("r/side/b", 3.0, piece(0, 8)), ("r/ego/c", None, piece(2, 7))))["r/ego/c"]
    assert clear.confidence > alone.confidence > 6


def test_a_check_says_which_known_offset_the_sound_contradicts(make) -> None:
    clips = [("r/front/a", 0.0, piece(0, 9)), ("r/side/b", 1.0, piece(1, 9)), ("r/top/c", 4.0, piece(2, 8))]
    manifest = make(*clips, ("r/ego/d", None, piece(0, 5)))
    rows = synced(manifest, check=True)
    assert outcomes(rows) == {"r/front/a": "agrees", "r/side/b": "agrees", "r/top/c": "differs"}
    assert (rows["r/top/c"].known_s, rows["r/top/c"].estimate_s) == (4.0, pytest.approx(2.0, abs=0.004))


def test_estimates_are_written_remembered_and_never_references(make, tmp_path) -> None:
    manifest = make(
        ("r/front/a", 0.0, piece(0, 6)), ("r/ego/b", None, piece(2, 12)), ("r/ego/c", None, piece(7, 14)),
        ("r/ego/d", None, piece(0, 5, of=OTHER)),
    )  # fmt: skip
    folder = tmp_path / "data"
    manifest.save(folder)
    header = (folder / "dataset.toml").read_bytes()
    expected = {"r/ego/b": "placed", "r/ego/c": "unsure", "r/ego/d": "unsure"}
    assert outcomes(synced(manifest, folder)) == expected
    loaded = Manifest.load(folder)
    offsets = dict(loaded.clips.select("clip", "offset_s").iter_rows())
    assert offsets == {"a": 0.0, "b": pytest.approx(2.0, abs=0.004), "c": None, "d": None}
    assert loaded.clips.drop("offset_s").equals(manifest.clips.drop("offset_s"))
    assert (folder / "dataset.toml").read_bytes() == header
    # c overlaps only with b, whose offset is an estimate: a second run says the same as the first
    assert outcomes(synced(loaded, folder)) == {"r/ego/c": "unsure", "r/ego/d": "unsure"}
    record = load_record(folder)
    assert dict(record.select("clip", "outcome").iter_rows()) == {"b": "placed", "c": "unsure", "d": "unsure"}
    # overwriting without success keeps the offset and what is known of it; so b stays an estimate
    rows = synced(loaded, folder, overwrite=True, min_confidence=1e4)
    assert outcomes(rows) == {"r/ego/b": "unsure", "r/ego/c": "unsure", "r/ego/d": "unsure"}
    assert load_record(folder).filter(pl.col("clip") == "b")["outcome"].item() == "placed"
    # whoever sets an offset by hand makes it a known one, and c is found through it
    clips = loaded.clips.with_columns(pl.when(pl.col("clip") == "b").then(2.5).otherwise("offset_s").alias("offset_s"))
    assert synced(replace(loaded, clips=clips), folder)["r/ego/c"].estimate_s == pytest.approx(7.5, abs=0.004)


def test_overwriting_keeps_the_longest_clip_as_the_clock(make) -> None:
    manifest = make(
        ("r/ego/a", 5.0, piece(2, 8)), ("r/front/b", 0.0, piece(0, 10)), ("r/side/c", 0.3, piece(0, 9))
    )  # fmt: skip
    assert synced(manifest) == {}
    rows = synced(manifest, overwrite=True)
    assert outcomes(rows) == {"r/ego/a": "placed", "r/side/c": "placed"}
    assert rows["r/ego/a"].estimate_s == pytest.approx(2.0, abs=0.004)
    assert rows["r/side/c"].estimate_s == pytest.approx(0.0, abs=0.004)


def test_processes_find_what_one_finds(make) -> None:
    clips = [(f"{r}/front/a", 0.0, piece(0, 6)) for r in "xyz"] + [(f"{r}/ego/b", None, piece(1, 5)) for r in "xyz"]
    manifest = make(*clips)
    assert synced(manifest, jobs=2) == synced(manifest)


def test_wrong_settings_views_and_records_are_refused(make, tmp_path) -> None:
    manifest = make(("r/front/a", 0.0, None))
    with pytest.raises(InputError, match="no clip of view 'top'; the views are front"):
        plan_sync(manifest, load_record(tmp_path), SyncSettings(), views=["top"])
    with pytest.raises(InputError, match="confidence > 0"):
        SyncSettings(min_confidence=float("nan"))
    with pytest.raises(InputError, match="nothing to overwrite"):
        SyncSettings(check=True, overwrite=True)
    (tmp_path / "sync.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        load_record(tmp_path)
    pl.DataFrame({"recording": ["r"]}).write_parquet(tmp_path / "sync.parquet")
    with pytest.raises(InputError, match="expected columns"):
        load_record(tmp_path)


def test_real_views_are_in_step_and_clips_of_other_recordings_stay_unknown(shared_data) -> None:
    root = shared_data / "x360"
    names = sorted(path.stem for path in (root / "panoramic").glob("*.mp4"))
    rows = []
    for i, name in enumerate(names):
        rows.append((name, "panoramic", "a", f"panoramic/{name}.mp4", 0.0))
        rows.append((name, "third_person", "a", f"third_person/{name}.mp4", None))
        rows.append((name, "stranger", "a", f"third_person/{names[i - 1]}.mp4", None))
    ego = next(name for name in names if name.startswith("f19a6682"))
    rows.append((ego, "binocular", "a", f"binocular/{ego}/clip0.mp4", None))
    clips = [(*row, 10.0, None, None, None, True) for row in rows]
    recordings = pl.DataFrame([(n, 10.0, None, "test") for n in names], schema=SCHEMAS["recordings"], orient="row")
    table = pl.DataFrame(clips, schema=SCHEMAS["clips"], orient="row")
    found = synced(Manifest("x360", root, (), (), recordings, table, empty_table("instances")))
    for name in names:
        third, stranger = found[f"{name}/third_person/a"], found[f"{name}/stranger/a"]
        assert (third.outcome, stranger.outcome) == ("placed", "unsure")
        assert third.estimate_s == pytest.approx(0.0, abs=0.002)  # measured: 0.4 ms
        assert third.confidence > 60
        assert stranger.confidence < 3
    assert len(names) == 20
    # an egocentric clip that can be placed: the phases of the waveforms, which are not compared, say the same
    assert found[f"{ego}/binocular/a"].estimate_s == pytest.approx(-2.819, abs=0.005)
