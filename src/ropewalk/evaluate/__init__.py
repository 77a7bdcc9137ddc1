"""Scores: perplexity by length and passkey retrieval."""
