"""Making a model smaller under a budget, in numpy: tables, masks, the best additive plan."""
