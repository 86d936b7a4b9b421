"""A Kubernetes for the tests: whichever the machine can give, with what the tests count on.

`up()` answers with a cluster that is ready, `images.ensure()` brings our images to it, and
`controlplane.ControlPlane` is an API server alone, for tests that need no pods.
"""
