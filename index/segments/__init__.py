"""The store on this machine: growing blocks, sealed segments, search, snapshots."""
