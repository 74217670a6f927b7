"""What the engine costs, side by side with its peers and with the least that Python could cost."""
