"""Turning a language model into text: autoregressive, early exit, self-speculative."""
