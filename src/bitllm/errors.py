"""Named errors for users' mistakes: one line each, with the file, what was expected, what was found, what to do."""


class BitLlmError(Exception):
    """A mistake that the user can correct; the command line prints its message and exits with status 2."""


class ConfigError(BitLlmError):
    """An invalid configuration key or value."""


class DataError(BitLlmError):
    """An input file that is missing, damaged or does not match its name."""


class SplitError(BitLlmError):
    """A split that leaks, or does not belong to the data."""


class SealedTestError(SplitError):
    """Use of the test part during training."""


class CheckpointError(BitLlmError):
    """A checkpoint that is missing, incomplete or belongs to another model."""


class ModelError(BitLlmError):
    """A model that loads, but cannot be used for its purpose."""


class OutputError(BitLlmError):
    """An output path that cannot be written: not empty, disk full, or no permission."""


class TrainingError(BitLlmError):
    """Training cannot continue, for example because the loss or a reward is not finite."""


class StoppedError(BitLlmError):
    """A run that stopped after a checkpoint because it was asked to (SIGTERM)."""
