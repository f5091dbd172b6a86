"""Draws plain tables, figures and text; knows no subject."""
