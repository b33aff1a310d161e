"""Parts of the tools that draw, measure or read images."""
