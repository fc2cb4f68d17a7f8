"""The Reformer and its engine: token ids in, scores and tokens out; torch, and nothing of the wire."""
