"""LightningModules, one objective a file."""
