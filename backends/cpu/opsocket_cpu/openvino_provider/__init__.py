"""OpenVINO's operators as a provider, where it is installed."""
