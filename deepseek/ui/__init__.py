"""The page: one file a tab, each a function that builds it, and the parts that tabs share."""
