"""Kernel Sparsity and Entropy (KSE): the outputs of a convolution share few kernels per input channel.

Read `KernelSparsityEntropy.run` first.
"""

from pruning.methods.kse.method import KernelSparsityEntropy

__all__ = ["KernelSparsityEntropy"]
