"""How the built-in models of dreamtune are made: artwork, training, evaluation, export. See
README.md.
"""
