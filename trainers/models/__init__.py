"""The models: policies and critics over transformers' models, and small actor-critic MLPs."""
