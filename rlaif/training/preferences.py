"""The old place of `rlaif.preferences`."""

from rlaif.preferences import Pair, Preferences, Turn, _split_text, counted, read_preferences

__all__ = ["Pair", "Preferences", "Turn", "_split_text", "counted", "read_preferences"]
