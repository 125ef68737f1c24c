"""Papers' claims as small experiments, and what came out."""
