"""Engines: what holds weights and an optimizer and takes steps."""
