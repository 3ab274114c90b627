"""dreamtune puts a person's own concept into a diffusion model, from the shell."""

__version__ = "0.1.0"
