"""What changes a model or its training, one method a file."""
