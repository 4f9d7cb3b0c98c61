"""What is matched between real and synthetic images."""
