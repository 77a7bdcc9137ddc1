"""Finding rescale factors: by gradient and by evolution."""
