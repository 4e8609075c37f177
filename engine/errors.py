"""Errors that a user can act on. The tools print them as one line; everything else keeps its traceback."""


class LinescanError(RuntimeError):
    """Base of the errors below: the message says what is wrong and where."""


class ConfigError(LinescanError):
    """A config, or a combination of command-line options, that cannot run."""


class CheckpointError(LinescanError):
    """A checkpoint that is missing, truncated, refused by the safe loader, or made for something else."""


class NonFiniteLossError(LinescanError):
    """The training loss became NaN or infinite."""
