"""The layers' forward and backward passes, compiled by Numba. They know arrays and sizes, nothing of models or files.

Every kernel takes its outputs first, then its inputs, and reads the sizes off the shapes. Backward kernels keep one
contract: gradients of parameters are added to (+=), gradients of activations are written (=), and the gradient that
runs down the residual stream is added to (+=). Work is cut by shape, never by the number of threads, and every sum has
one owner and one order, so that the results are the same bits for any number of threads.
"""
