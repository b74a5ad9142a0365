"""What a training leaves: the file format, merging and listing, and the formats of others."""
