"""What a road costs before it is run: tokens, FLOPs, memory and time of every stage, from a model's config alone."""
