"""llama.cpp: a checkpoint as one GGUF file with its tokenizer, made smaller, and run."""
