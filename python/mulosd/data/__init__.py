"""Training and evaluation data: sprites, captioned scenes, folders of images."""
