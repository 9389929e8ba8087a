"""C++ that is compiled on first use; see :mod:`bgrpo.decoding.compiled`."""
