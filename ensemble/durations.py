"""How long the instances of each class last, from training recordings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from talstack.io.manifest import Manifest

SHRINKAGE = 3.0  # instances of the average class that are added to each: a class with one has no spread of its own
LEAST_SPREAD = 0.15  # of log durations


@dataclass(frozen=True, slots=True, eq=False)
class ClassDurations:
    """Durations of C classes.

    Attributes:
        limits_s: (C, 2) float64 shortest and longest instance, seconds.
        log_mean, log_spread: (C,) float64 mean and standard deviation of the log of the seconds.
    """

    limits_s: np.ndarray
    log_mean: np.ndarray
    log_spread: np.ndarray

    @classmethod
    def of(cls, manifest: Manifest, recordings: list[str]) -> "ClassDurations":
        """Return the durations of the instances of these recordings; a class without one has those of all classes."""
        known = manifest.instances.filter(pl.col("recording").is_in(recordings))
        by_class = {label: rows for (label,), rows in known.partition_by("label", as_dict=True).items()}
        every = _seconds(known)
        if not every.size:
            return cls.unknown(len(manifest.actions))
        seconds = [_seconds(by_class[name]) if name in by_class else every for name in manifest.actions]
        mean, variance = np.log(every).mean(), np.log(every).var()
        log_mean, log_spread = [], []
        for name, values in zip(manifest.actions, seconds, strict=True):
            count = len(values) if name in by_class else 0
            centre = (np.log(values).sum() * (count > 0) + SHRINKAGE * mean) / (count + SHRINKAGE)
            square = (np.square(np.log(values) - centre).sum() * (count > 0) + SHRINKAGE * variance) / (
                count + SHRINKAGE
            )
            log_mean.append(centre)
            log_spread.append(max(np.sqrt(square), LEAST_SPREAD))
        limits = np.array([[values.min(), values.max()] for values in seconds])
        return cls(limits, np.array(log_mean), np.array(log_spread))

    @classmethod
    def unknown(cls, num_classes: int) -> "ClassDurations":
        """Return durations that say nothing: no limits, and a spread as wide as can be."""
        return cls(np.tile([0.0, np.inf], (num_classes, 1)), np.full(num_classes, 1.0), np.full(num_classes, 10.0))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain lists; no upper limit is None."""
        limits = [[low, high if np.isfinite(high) else None] for low, high in self.limits_s.tolist()]
        return {"limits_s": limits, "log_mean": self.log_mean.tolist(), "log_spread": self.log_spread.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ClassDurations":
        """Return the durations that `to_json` gave."""
        limits = [[low, np.inf if high is None else high] for low, high in values["limits_s"]]
        return cls(
            np.array(limits, dtype=np.float64).reshape(-1, 2),
            np.array(values["log_mean"], dtype=np.float64),
            np.array(values["log_spread"], dtype=np.float64),
        )

    def deviation(self, label: np.ndarray, length_s: np.ndarray) -> np.ndarray:
        """Return how many standard deviations the log of each length lies from its class's mean, (n,)."""
        return (np.log(np.maximum(length_s, 1e-3)) - self.log_mean[label]) / self.log_spread[label]

    def typical_s(self) -> np.ndarray:
        """Return the geometric mean duration of every class, (C,), seconds."""
        return np.exp(self.log_mean)


def _seconds(instances: pl.DataFrame) -> np.ndarray:
    return (instances["end_s"] - instances["start_s"]).to_numpy().astype(np.float64)
