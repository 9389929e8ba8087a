"""Conversations of people: preference pairs and prompts from them, and the models that package indexes hold."""
