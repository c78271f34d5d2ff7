"""Rows without padding: many sequences in one row, with attention and kernels for them."""
