"""What a model answers, one module a task: answer type, JSON, tensors, and when two answers agree."""
