"""One command, one file: each module has `register(app)` and imports nothing heavy by itself."""
