"""The Terraform provider of the local lab: `framework` tames PyPI's `tf`, `resources` puts the engine behind it."""
