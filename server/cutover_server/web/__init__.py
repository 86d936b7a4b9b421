"""The pages people open: a list to label from, and how the models perform. No script, no foreign asset."""
