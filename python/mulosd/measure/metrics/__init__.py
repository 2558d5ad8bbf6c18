"""What is counted about images: accuracy, distances to real ones, diversity, seams, nearest training images."""
