"""The one exception that a user is meant to see."""

from __future__ import annotations


class AfieldError(ValueError):
    """Bad input, told in one sentence: the bad value, the place, and what would be valid.

    The command line prints the sentence and exits with code 2, without a traceback. Library code raises it for whatever a
    user can cause (a file, an option, a mismatch of two artifacts); programming errors stay ordinary exceptions.
    """
