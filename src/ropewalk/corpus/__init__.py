"""Text: where it comes from, splits, and token stores."""
