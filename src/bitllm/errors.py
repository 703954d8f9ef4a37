"""Named errors for a user's mistakes: one line each, naming the file, what was expected, what came, what to do."""


class BitLlmError(Exception):
    """A mistake the user can mend; the command line prints its one line and exits with status 2."""


class ConfigError(BitLlmError):
    """A configuration key or value that is not valid."""


class DataError(BitLlmError):
    """An input file that is missing, damaged or not what its name says."""


class SplitError(BitLlmError):
    """A split that leaks, or that does not belong to the data at hand."""


class SealedTestError(SplitError):
    """The test part was opened while something was being fitted."""


class CheckpointError(BitLlmError):
    """A checkpoint that is missing, incomplete or of another model."""


class ModelError(BitLlmError):
    """A model that loads but cannot do what it was chosen for."""


class OutputError(BitLlmError):
    """A place that cannot be written: it is not empty, it is full, or it is not ours."""


class TrainingError(BitLlmError):
    """A training run that cannot go on: the loss or a reward is not a number."""


class StoppedError(BitLlmError):
    """A run that was asked to end, and stopped after a checkpoint."""
