"""How good the images are, what they are good for, and whether they copy patients."""
