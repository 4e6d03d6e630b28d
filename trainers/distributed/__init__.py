"""Processes: their collectives, their launcher, and what happens when one of them fails."""
