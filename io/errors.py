"""Errors that talstack raises on purpose.

Each is a `TalstackError` and also the builtin that says the same, so callers may catch either. A message
says what was expected, what came, which file / recording / view, and what to do.
"""


class TalstackError(Exception):
    """Base of every error that talstack raises on purpose."""


class InputError(TalstackError, ValueError):
    """A table, annotation or argument that cannot be used as it stands."""


class MissingInputError(TalstackError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class ConfigError(TalstackError, ValueError):
    """A configuration file with an unknown key or a value of the wrong type or range."""


class MediaError(TalstackError, OSError):
    """A media file that gives no frames or no sound."""


class StoreError(TalstackError, OSError):
    """A shard of the feature store that is damaged, foreign, not the one asked for, or that could not be written."""


class WriteError(TalstackError, OSError):
    """A file that could not be written: the disk is full or failing, or the folder may not be written to."""


class ModelError(TalstackError, ValueError):
    """A model file that is damaged, foreign or made for something else."""


class LeakError(TalstackError, ValueError):
    """Something would be fitted or scored on recordings that a lower level has already seen."""
