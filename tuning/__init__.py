"""What `tune.py` tells in short: the space, the trainings, the study that they share, what is kept and drawn."""
