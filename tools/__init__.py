"""Tools that make what dreamtune ships; not part of the wheel."""
