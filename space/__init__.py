"""What `app.py` tells in short: settings, a stranger's input, one model that many callers share, the page, HTTP."""
