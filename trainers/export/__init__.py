"""Model folders that other programs load."""
