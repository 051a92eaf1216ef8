"""Training: the recipe, the step, the trainer, validation, and state to resume from."""
