"""Base models: loading any checkpoint, and the walker."""
