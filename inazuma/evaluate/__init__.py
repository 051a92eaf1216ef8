"""Evaluation: tasks whose items are proved, samples with a typed outcome, scores with their bounds, comparisons."""
