"""What plugins know of architectures, and how they are found."""
