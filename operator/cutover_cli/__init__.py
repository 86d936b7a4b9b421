"""`kubectl cutover`: what a rollout is doing, why, and the four orders a person may give it."""
