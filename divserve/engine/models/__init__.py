"""What runs beside the served model in its forward: amateurs and the hidden store."""
