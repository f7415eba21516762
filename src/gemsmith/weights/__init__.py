"""Files and parameters: reading, writing, fetching and finding models."""
