"""``bgrpo bench step``: where a training step's time goes, against what it must take at least."""
