"""What every part of the plugin raises when it cannot do what was asked."""

from __future__ import annotations


class Refused(Exception):
    """The message says why, and what would help; it is all the user sees."""
