"""Published results, measured again with the product itself: ``make reproduce``."""
