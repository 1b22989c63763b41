"""Measures of an extension's events, for Prometheus or OpenTelemetry::

    from ratelimit_ext.metrics import prometheus

    measures = prometheus.measure(limiter)

    @app.get("/metrics")
    @limiter.exempt
    def metrics():
        return measures.scrape()

Names and labels are the same for both; docs/operate/metrics.md lists them.
"""
