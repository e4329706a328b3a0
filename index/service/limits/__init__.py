"""What a request passes before its route: hosts, keys, rates, bounds."""
