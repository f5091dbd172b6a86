"""Pure tensor functions, each with a slow reference in its test."""
