# One mail server in the local lab: a network with its resolver, a firewall outside of the machine, the machine.

locals {
  ssh_port = 22
}

resource "lab_network" "lab" {
  name           = var.name
  outside_domain = var.outside_domain
}

resource "lab_machine" "server" {
  name               = var.name
  network            = lab_network.lab.name
  firewall           = lab_firewall.server.name
  fqdn               = var.hostname
  mx_for             = var.domains
  release            = var.release
  image_max_age_days = var.image_max_age_days
  boot_timeout       = var.boot_timeout
  ssh_user           = var.ssh_user
  ssh_public_key     = trimspace(var.ssh_public_key)
}
