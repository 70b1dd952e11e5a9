"""From laws and costs to a choice. No torch."""
