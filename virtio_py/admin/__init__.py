"""Device groups and their administration (2.12, 2.13, 2.14): the owner's half and its driver's half."""
