"""What benchmarks have in common: their setting, the ids they draw, and how they take a step or a lookup apart."""
