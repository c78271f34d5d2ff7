"""Rows without padding: several examples or one prompt's many reasons in one row, attention and kernels for them."""
