"""What a command does: artifacts in, an artifact out. Only stages read another stage's artifact."""
