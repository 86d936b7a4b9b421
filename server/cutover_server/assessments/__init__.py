"""Assessments: keeps what the gateways answered, collects what people think of it, and counts it once."""
