"""Makes a model smaller: units and levels, a database of smaller weights, searchers, slicing."""
