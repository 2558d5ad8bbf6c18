"""Networks that the judged models never saw: what they see in an image, and graders made of them."""
