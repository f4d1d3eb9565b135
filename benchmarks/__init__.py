"""What things cost, measured against peers in the same run."""
