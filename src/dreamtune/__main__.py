"""`python -m dreamtune`, for where the command is not on the path."""

from dreamtune.cli import main

main()
