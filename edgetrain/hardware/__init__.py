"""What a model costs on a device: one table of layers (Workload), and every device a function from it to a Cost."""
