terraform {
  required_version = ">= 1.9.0"

  # The glue gives the path: terraform init -backend-config=path=inventory/terraform/terraform.tfstate
  backend "local" {}

  required_providers {
    # Ours, in Python (scripts/gatepost/lab/provider). Terraform finds it in terraform.d/plugins beside this file, its
    # implied local mirror, so nothing is downloaded.
    lab = {
      source  = "terraform.local/gatepost/lab"
      version = "0.1.0"
    }
  }
}

provider "lab" {}
