"""A sweep's report: records, statistics, verdict, pictures, page."""
