"""Where a step's teacher signals come from: models, stores of scores, the student itself, several of these."""
