"""Supervised training: SFT and the reward model."""
