"""Photos, masks and labels: finding the files and decoding them to arrays. No Ray, no neural network."""
