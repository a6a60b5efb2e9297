"""What a user can mend: the message says which checkpoint or argument, what it was and what was expected."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is of no known layout, or does not fit what was asked of it."""
