"""Load tests: locust users that stream, and a report of what users experience.

Only ``loadtest.locustfile`` imports locust, which patches the whole process when it is imported.
"""
