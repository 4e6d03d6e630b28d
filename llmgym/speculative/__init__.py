"""Recorded drafts of a smaller model, replayed in numpy: traces, times, and rules to compare."""
