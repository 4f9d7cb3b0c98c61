"""The synthetic set: its images, where they start, and its files."""
