"""What `train.py` tells in short: its flags, towers, optimiser and the folder it leaves."""
