"""A topology file in, a verified OpenStack lab out."""
