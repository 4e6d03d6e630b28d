"""Rewards: what a response was worth. `base` holds the protocol and the error policy."""
