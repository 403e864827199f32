"""How kernels are compiled, cached and threaded, and the tile of the matrix product. Skip at first reading."""
