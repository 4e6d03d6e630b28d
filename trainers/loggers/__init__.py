"""Where metrics go: the console, JSON lines in the run folder, Weights & Biases."""
