"""The vendors' matrix products (cuBLAS, hipBLASLt) as torch calls them, for backends cuda and rocm alike."""
