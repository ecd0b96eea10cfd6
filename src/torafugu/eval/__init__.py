"""How good is it, honestly? Matrices, baselines, intervals, reports."""
