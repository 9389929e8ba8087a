"""Benchmarks: what ``bgrpo bench`` measures, one module or package per subcommand."""
