"""The feature store: a folder of immutable shards that several processes may fill at once.

    STORE/<recipe>/recipe.json                                     the settings, for people
    STORE/<recipe>/<recording>/<view>-<modality>-<fingerprint>.h5  one shard
    STORE/<recipe>/<recording>/...-<fingerprint>.failed.json       a recorded failure and its reason
    STORE/extractions/<name>.json                                  what one `talstack extract` made
    STORE/calibration/<name>-<modality>.onnx                       an int8 network, and what its ranges were found on
    STORE/clip-hashes.json                                         content hashes by path, size and mtime

A shard's place follows from its key, so a lookup is one stat and needs no index or lock.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from talstack.io.errors import InputError, StoreError, TalstackError
from talstack.io.files import canonical_json, read_json, sha256_file, sha256_text, write_json
from talstack.io.shard import Shard, ShardKey, read_shard, write_shard

NETWORK_FOLDER = "calibration"

Status = Literal["done", "failed", "missing"]


class FeatureStore:
    """The shards under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def recipe_folder(self, recipe: Mapping[str, Any]) -> Path:
        """Return the folder that holds every shard made by this recipe."""
        return self.root / sha256_text(canonical_json(dict(recipe)))[:16]

    def path_of(self, key: ShardKey) -> Path:
        """Return where the shard of `key` lies or would lie."""
        recording, view, modality = (_file_name(part) for part in (key.recording, key.view, key.modality))
        return self.recipe_folder(key.recipe) / recording / f"{view}-{modality}-{key.fingerprint[:16]}.h5"

    def status(self, key: ShardKey) -> Status:
        """Return whether the shard is done, has failed for good, or is still missing."""
        path = self.path_of(key)
        if path.is_file():
            return "done"
        return "failed" if failure_path(path).is_file() else "missing"

    def write(self, key: ShardKey, shard: Shard) -> None:
        """Commit the shard; a recorded failure of the same key is withdrawn."""
        path = self.path_of(key)
        write_shard(path, key, shard)
        failure_path(path).unlink(missing_ok=True)
        recipe_file = self.recipe_folder(key.recipe) / "recipe.json"
        if not recipe_file.exists():
            write_json(recipe_file, dict(key.recipe))

    def read(self, key: ShardKey) -> Shard:
        """Return the shard.

        Raises:
            StoreError: it is missing, damaged or of other settings; a recorded failure is quoted.
        """
        reason = self.failure(key)
        if reason is not None:
            raise StoreError(f"{key}: extraction failed: {reason}")
        path = self.path_of(key)
        if not path.is_file():
            raise StoreError(f"{key}: no features under these settings in {self.root}; run `talstack extract`")
        return read_shard(path, key)

    def record_failure(self, key: ShardKey, reason: str) -> None:
        """Record that the shard cannot be made, and why."""
        write_json(failure_path(self.path_of(key)), {"key": json.loads(key.identity), "reason": reason})

    def failure(self, key: ShardKey) -> str | None:
        """Return the recorded reason why the shard cannot be made, or None.

        Raises:
            StoreError: the record is damaged.
        """
        path = self.path_of(key)
        failed = failure_path(path)
        if path.is_file() or not failed.is_file():
            return None
        try:
            return str(read_json(failed)["reason"])
        except (InputError, KeyError, TypeError) as error:
            raise StoreError(
                f"{failed}: damaged record of a failure ({error}); run `talstack extract --retry-failed`"
            ) from error

    def forget_failure(self, key: ShardKey) -> None:
        """Remove a recorded failure, so that the next extraction tries again."""
        failure_path(self.path_of(key)).unlink(missing_ok=True)


class ClipHashes:
    """Content hashes of source files, remembered by path, size and modification time.

    A file is read again only when one of the three has changed.
    """

    def __init__(self, store_root: Path) -> None:
        self._file = store_root / "clip-hashes.json"
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            known = read_json(self._file)
        except TalstackError:
            return  # a missing or damaged cache only costs reading the files again
        if isinstance(known, dict):
            self._known = known

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of the file's content, or "unreadable: ..." where it cannot be read."""
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            known = self._known.get(str(path))
            if known is not None and known[:2] == stamp:
                return str(known[2])
            digest = sha256_file(path)
        except OSError as error:
            return f"unreadable: {type(error).__name__}"
        self._known[str(path)] = [*stamp, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learned; of two processes that save at once one wins, the other reads again."""
        if self._changed:
            write_json(self._file, self._known)
            self._changed = False


def failure_path(path: Path) -> Path:
    """Return where the failure to make the shard at `path` is recorded."""
    return path.with_suffix(".failed.json")


def _file_name(name: str) -> str:
    """Return the name with everything that could leave the folder percent-encoded."""
    quoted = quote(name, safe=" ")
    return "%2E" * len(name) if set(name) == {"."} else quoted
