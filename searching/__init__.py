"""What `search.py` tells in short: the folder of an index, how it is made, how it answers, and whether a pair fits."""
