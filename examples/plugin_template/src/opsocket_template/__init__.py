"""An opsocket backend over NumPy arrays: the text to start a new one from.

Read it in this order: plugin, backend, provider, refusals; arrays, session; layouts, kernels.
"""
