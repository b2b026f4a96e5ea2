"""From a model folder, a table or the app to a repository on the Hub: what `push_to_hub.py` tells in short."""
