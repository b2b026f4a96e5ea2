"""Metric modules that `evaluate.load` takes by path, and the evaluation of all modality subsets that uses them."""
