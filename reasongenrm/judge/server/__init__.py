"""The judge as a server: REST, KServe's protocols, limits, metrics."""
