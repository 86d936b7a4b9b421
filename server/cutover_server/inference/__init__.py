"""The built-in engine: one vision-language model behind an OpenAI-compatible API, on a CPU or a small GPU."""
