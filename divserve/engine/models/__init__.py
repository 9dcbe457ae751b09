"""What is loaded beside the served model into its forward."""
