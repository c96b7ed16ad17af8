"""Bad input, made by the thousand: `scripts/fuzz`."""
