"""Collectors: environments times a policy, into rollouts."""
