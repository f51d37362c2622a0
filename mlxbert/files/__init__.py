"""Writing a model directory whole or not at all; both the converter and a fine-tuned model need it."""
