"""Text: sources, splits into training, search and test documents, and token stores."""
