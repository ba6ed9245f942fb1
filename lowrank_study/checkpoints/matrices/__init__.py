"""The linear maps of a checkpoint, each as one (out, in) matrix."""
