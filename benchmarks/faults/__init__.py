"""Kills and fuzzing."""
