"""A model folder, ready to answer."""
