"""The tokens, FLOPs, memory and time of every stage of an extension, predicted from the model's config alone."""
