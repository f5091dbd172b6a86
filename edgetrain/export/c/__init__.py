"""Networks as self-contained C99 for microcontrollers."""
