"""File formats of the ecosystem as pure maps between dicts; nothing here writes a file."""
