"""Side-by-side measurements against peers, and of our own parts."""
