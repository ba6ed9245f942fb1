"""File formats of weights: safetensors, GGUF and PyTorch, each checked before it is believed."""
