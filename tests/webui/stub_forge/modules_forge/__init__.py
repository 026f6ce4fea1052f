"""What Forge has beside A1111's interface."""
