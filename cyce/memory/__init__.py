"""New arrays, and the memory that they come from."""
