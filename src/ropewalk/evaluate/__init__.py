"""What a model can read: perplexity by length, passkeys, needles and general benchmarks, and their result tables."""
