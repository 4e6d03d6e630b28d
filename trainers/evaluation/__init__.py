"""Held-out scores of text and of control, and their intervals."""
