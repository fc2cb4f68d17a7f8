"""Documents kept outside the engine's memory: bytes below a URL, what they are, and how they go out and come back."""
