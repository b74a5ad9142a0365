"""Images, masks and data sets on disk: read and checked, split, and written as pairs."""
