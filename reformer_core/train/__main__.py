"""`python -m reformer_core.train` is `reformer train`: what torchrun starts."""

from reformer_core.train.cli import train

train(prog_name="reformer train")
