"""A compression: from a model and a budget to a smaller model, stage by stage."""
