"""Models served on one's own machine, behind the API that clients speak, and chat."""
