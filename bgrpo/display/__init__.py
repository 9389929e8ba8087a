"""What a person sees: terminal, progress, pictures."""
