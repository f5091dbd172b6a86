"""Plain nn.Modules, one architecture a file."""
