"""A small corpus, and the job of scoring it."""

TEXTS = [bytes([65 + number % 26]) * 50 + b" and so on " * (20 + number) for number in range(24)]
