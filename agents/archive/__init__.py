"""The archive of the log in Parquet: written, compacted, verified and watched."""
