"""The configuration file: one TOML table per stage."""

from dataclasses import dataclass, field
from pathlib import Path

from talstack.ensemble.config import EnsembleConfig
from talstack.extract.config import ExtractConfig, SamplingConfig
from talstack.extract.training.config import FinetuneConfig
from talstack.heads.config import HeadsConfig
from talstack.io.config import build, read_toml, to_toml
from talstack.io.errors import ConfigError
from talstack.io.files import write_text

SECTIONS = {
    "sampling": SamplingConfig,
    "finetune": FinetuneConfig,
    "extract": ExtractConfig,
    "heads": HeadsConfig,
    "ensemble": EnsembleConfig,
}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of every stage."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def to_toml(self) -> str:
        """Return the commented TOML text of these settings."""
        return to_toml({name: getattr(self, name) for name in SECTIONS})

    def save_resolved(self, run: Path) -> None:
        """Write the settings as they are in force into the run's folder."""
        write_text(run / "config.toml", self.to_toml())


def load_config(path: Path | None) -> Config:
    """Return the settings of the file over the defaults; the defaults alone without a file.

    Raises:
        MissingInputError, ConfigError: no such file, not TOML, an unknown table or key, or a wrong type.
    """
    if path is None:
        return Config()
    values = read_toml(path)
    unknown = sorted(set(values) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"{path}: unknown table [{unknown[0]}]; tables: {', '.join(SECTIONS)}")
    return Config(**{name: build(SECTIONS[name], table, where=f"{path} [{name}]") for name, table in values.items()})
