"""Measurements side by side in one run: `python -m edgetrain bench NAME key=value`.

A bench is a module here that defines a function of its own name, `name(folder, *, key: type = default) -> metrics`.
Its keyword arguments are what the command line sets; its docstring's first line is what `bench` alone lists.
"""
