"""A Hugging Face Hub in the test process: what the unmodified huggingface_hub client is tested against."""
