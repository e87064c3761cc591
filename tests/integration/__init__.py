"""Parts and other people's programs together."""
