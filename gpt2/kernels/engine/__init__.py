"""Compiling, caching and threading of kernels, and the matrix product's register tile. Skip on first reading."""
