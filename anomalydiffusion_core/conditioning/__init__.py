"""What the model is told: the spatial encoder, prompt templates, and the protocol of a text encoder."""
