"""Personalised dialogue: exchanges with a persona, stories retrieved from a corpus, answers fused from them."""
