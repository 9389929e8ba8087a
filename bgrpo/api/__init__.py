"""What ``import bgrpo`` offers: train, evaluate and decode from Python."""
