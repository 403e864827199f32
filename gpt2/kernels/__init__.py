"""The layers' forward and backward passes, compiled by Numba. They know arrays and sizes, nothing of models or files.

Every kernel takes its outputs first, then its inputs, and reads the sizes off the shapes. Backward kernels keep one
contract: gradients of parameters are added to (+=), gradients of activations are written (=), and the gradient that
runs down the residual stream is added to (+=). Every sum has one owner, and an order that depends on the shapes alone,
so that the results are the same bits for any number of threads.
"""
