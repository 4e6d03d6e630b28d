"""PPO for language-model and classic environments. This package imports nothing by itself."""
