"""Environments in processes that can be killed: what starts them, what runs there, what crosses."""
