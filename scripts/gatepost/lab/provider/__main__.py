"""What the wrapper in terraform/local/terraform.d/plugins runs: `python -P -m gatepost.lab.provider`."""

from gatepost.lab.provider import framework, resources

framework.serve(resources.LabProvider())
