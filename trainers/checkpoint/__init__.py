"""Checkpoints: states on disk, complete or not there."""
