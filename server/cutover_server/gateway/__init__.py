"""The gateway: gives each request to one arm, answers from another if it must, and writes down what happened."""
