"""Files to pixels and samples, within limits, also in processes of their own."""
