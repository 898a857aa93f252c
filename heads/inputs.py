"""What the models of one head learn from."""

from functools import cached_property
from typing import ClassVar

from talstack.heads.components import ComponentsJob, read_components
from talstack.heads.features import GroupFeatures, read_group
from talstack.heads.targets import TaskTargets, task_targets
from talstack.io.extraction import FeatureSet
from talstack.io.predictions import ModelKey


class HeadInputs:
    """Groups and targets of one head; a process keeps those of the last, since its next model is mostly of the same."""

    _last: "ClassVar[tuple[tuple[str, str], HeadInputs] | None]" = None

    def __init__(self, key: ModelKey, components: ComponentsJob | None, features: FeatureSet) -> None:
        self._key, self._components, self._features = key, components, features
        self._targets: TaskTargets | None = None

    @classmethod
    def of(cls, key: ModelKey, components: ComponentsJob | None, features: FeatureSet, *, name: str) -> "HeadInputs":
        """Return the inputs of a head.

        Args:
            components: of its group; None where it takes the features as they are.
            name: the head's fingerprint: under it, and in one store, they are the same.
        """
        which = (name, str(features.store_root))
        if cls._last is None or cls._last[0] != which:
            cls._last = None  # never two of them in memory
            cls._last = (which, cls(key, components, features))
        return cls._last[1]

    def group(self, fold: int) -> GroupFeatures:
        """Return components that were found without the fold, or the stored features where there are none."""
        if self._components is not None and self._components.files[fold].is_file():
            return self._usable(read_components(self._components.files[fold]))
        return self._stored

    def targets(self, group: GroupFeatures) -> TaskTargets:
        """Return what is true of every row of the group; the rows are the same for all folds."""
        if self._targets is None:
            self._targets = task_targets(self._key.task, self._features.manifest, group, self._features.segment_s)
        return self._targets

    @cached_property
    def _stored(self) -> GroupFeatures:
        return self._usable(read_group(self._features, self._key.view, self._key.modality))

    def _usable(self, group: GroupFeatures) -> GroupFeatures:
        return group if self._key.task == "scene" or group.aligned.all() else group.subset(group.aligned)
