"""Many runs as one result: every variant of a recipe with every seed."""
