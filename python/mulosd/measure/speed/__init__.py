"""Speed without quality: requests in flight, and real sizes beside the loops of others."""
