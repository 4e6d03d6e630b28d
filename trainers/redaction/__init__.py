"""Secrets are hidden here, in everything that a run writes."""
