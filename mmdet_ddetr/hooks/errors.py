class StartError(ValueError):
    """What keeps a training from starting: the message says what it is and how to mend it."""


class WorkDirInUseError(StartError):
    """Another training writes to the work directory."""
