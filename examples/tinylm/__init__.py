"""Two small language models that do sums in writing, and the OpenAI-compatible server in front of them."""
