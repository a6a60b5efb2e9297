class DataError(ValueError):
    """The data set, not the program, is at fault. The message is written for the user and is all they need."""
