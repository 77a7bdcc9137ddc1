"""Fine-tuning under rescale factors with Lightning."""
