"""Policies: the polynomial tokenizer and model, loading, saving, and exchange with minGPT."""
