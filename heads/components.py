"""Principal components of a (view, modality), made once per fold and shared by all its heads.

The stored features are wide: finding and taking their components costs more than most heads do. So one job per group
reads them once and writes, for every set of training recordings, a file with the reduction and the components of all
rows. Heads then never see the wide features: what changes one head costs that head alone.

RUN/heads/<view>-<modality>/components/<fingerprint>.safetensors and .json, its card with the file's SHA-256; both can
be deleted at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from talstack.heads.arrays import read_arrays, write_arrays
from talstack.heads.config import LEARNERS, HeadsConfig
from talstack.heads.crossfit import FoldPlan
from talstack.heads.features import GroupFeatures, read_group
from talstack.heads.reduction import Reduction
from talstack.io.config import to_dict
from talstack.io.errors import ModelError, TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.files import canonical_json, read_json, sha256_file, sha256_text, write_json
from talstack.io.predictions import SegmentIndex

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ComponentsJob:
    """The components of one group.

    Attributes:
        view, modality: which.
        num_components: how many are kept.
        files: where those of the model that leaves out each fold lie; -1 is the model of all.
    """

    view: str
    modality: str
    num_components: int
    files: dict[int, Path]

    def missing(self) -> list[int]:
        """Return the folds whose file is not there or damaged."""
        return [fold for fold, path in self.files.items() if not _is_whole(path)]


def plan_components(
    features: FeatureSet, view: str, modality: str, folder: Path, *, plan: FoldPlan, config: HeadsConfig
) -> ComponentsJob | None:
    """Return the job of a group; None where a setting asks for the features as they are."""
    num_components = num_shared(to_dict(config))
    if not num_components:
        return None
    recordings = sorted(features.manifest.recordings["recording"])
    shards = dict(zip(recordings, features.fingerprints(view, modality, recordings), strict=True))
    files = {}
    for number in plan.models:
        identity = {
            "format_version": FORMAT_VERSION,
            "library": version("scikit-learn"),
            "num_components": num_components,
            "shards": shards,
            "train": sorted(name for name in plan.learn if plan.folds[name] != number),
        }
        name = sha256_text(canonical_json(identity))[:32]
        files[number] = folder / "components" / f"{name}.safetensors"
    return ComponentsJob(view, modality, num_components, files)


def num_shared(config: Mapping[str, Any]) -> int:
    """Return how many components heads share under the settings of [heads]; 0 where they take features as they are.

    Learners that are not used count too, so that leaving one out changes nothing about the others.
    """
    wanted: list[int] = [config[f"{learner}_components"] for learner in LEARNERS]
    return max(wanted) if min(wanted) else 0


def reduced(group: GroupFeatures, reduction: Reduction) -> GroupFeatures:
    """Return the group with components in place of its features, as precise as heads have learned from them."""
    return replace(group, features=reduction(group.features).astype(np.float16), reduction=reduction)


def make_components(job: ComponentsJob, features: FeatureSet, plan: FoldPlan) -> None:
    """Write the files that are missing. A fold without a valid training row gets none.

    Features no wider than the number of components get none at all: heads take them as they are.
    """
    missing = job.missing()
    if not missing:
        return
    with threadpool_limits(limits=1):  # the numbers must not depend on how many processes share the machine
        group = read_group(features, job.view, job.modality)
        if group.features.shape[1] <= job.num_components:
            return
        for number in missing:
            train = np.array([name in plan.learn and plan.folds[name] != number for name in group.recordings])
            rows = np.flatnonzero(group.valid & train[group.row_recordings])
            if len(rows):
                reduction = Reduction.of(group.features, rows, components=job.num_components)
                _write(job.files[number], reduced(group, reduction), reduction)


def _write(path: Path, group: GroupFeatures, reduction: Reduction) -> None:
    arrays = {
        **reduction.arrays(),
        "components": group.features,
        "valid": group.valid,
        "aligned": group.aligned,
        "log_probs": group.log_probs,
        "scene_log_probs": group.scene_log_probs,
        "num_segments": np.array(group.index.num_segments, dtype=np.int64),
    }
    write_arrays(path, arrays)
    write_json(_card(path), {"recordings": list(group.recordings), "sha256": sha256_file(path)})


def read_components(path: Path) -> GroupFeatures:
    """Return the group with its components in place of its features.

    Raises:
        ModelError: the file is missing or damaged.
    """
    if not _is_whole(path):
        raise ModelError(f"{path}: missing or damaged; run `talstack heads` again")
    arrays = read_arrays(path)
    index = SegmentIndex(tuple(read_json(_card(path))["recordings"]), tuple(arrays["num_segments"].tolist()))
    return GroupFeatures(
        index, arrays["components"], arrays["valid"], arrays["aligned"], arrays["log_probs"],
        arrays["scene_log_probs"], Reduction.from_arrays(arrays),
    )  # fmt: skip


def _is_whole(path: Path) -> bool:
    try:
        return path.is_file() and bool(read_json(_card(path))["sha256"] == sha256_file(path))
    except (TalstackError, KeyError, TypeError):
        return False


def _card(path: Path) -> Path:
    return path.with_suffix(".json")
