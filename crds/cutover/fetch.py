"""The guarded fetcher: opens URLs that users gave, and nothing inside the cluster."""
