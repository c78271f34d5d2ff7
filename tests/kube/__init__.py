"""What a cluster would say about an object, without a cluster."""
