"""Search for widths and strategies within a byte budget."""
