"""The local lab: real machines on this host, without a cloud.

The engine knows nothing of Terraform and is importable: `images` (the Debian images), `network` (addresses, devices,
NAT), `resolver` (DNS), `firewall` (filters outside of the machines), `machine` (their life), on top of `host` (tools,
locks, processes) and `store` (the book of what is ours). `provider` puts Terraform's resources on top.
"""
