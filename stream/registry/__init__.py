"""The model registry: versions, generations, handovers, canaries, promotions."""
