"""This project's own kernels for the CPU, in C++ (`backends/cpu/native`), as a provider."""
