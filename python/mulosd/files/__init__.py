"""Files of users: images, texts, lists of prompts and images that are written, each read or written in one place."""
