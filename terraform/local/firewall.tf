# The same rules that every cloud root derives: one per row of the listener table, and SSH.

locals {
  listeners_file = coalesce(var.listeners_file, "${path.module}/../../roles/postfix/defaults/main/listeners.yml")
  listeners      = yamldecode(file(local.listeners_file)).postfix_listeners
}

resource "lab_firewall" "server" {
  name    = var.name
  network = lab_network.lab.name

  rules = concat(
    [for l in local.listeners : { port = l.port, protocol = "tcp", sources = l.sources }],
    [{ port = local.ssh_port, protocol = "tcp", sources = var.ssh_sources }],
  )

  lifecycle {
    precondition {
      condition     = alltrue([for l in local.listeners : can(regex("^[1-9][0-9]{0,4}$", tostring(l.port))) && try(tonumber(l.port) <= 65535, false)])
      error_message = "${local.listeners_file}: ports are ${jsonencode([for l in local.listeners : l.port])}. Expected: plain decimal numbers from 1 to 65535."
    }
    precondition {
      # Terraform reads 0465 as 465, Ansible as a string and other parsers as octal.
      condition     = !can(regex("port:\\s*[\"']?0", file(local.listeners_file)))
      error_message = "${local.listeners_file}: a port begins with 0. Expected: plain decimal numbers, without a leading zero."
    }
    precondition {
      condition     = length(distinct([for l in local.listeners : tostring(l.port)])) == length(local.listeners)
      error_message = "${local.listeners_file}: ports are ${jsonencode([for l in local.listeners : l.port])}. Expected: every row a port of its own, since Postfix listens once per port."
    }
    precondition {
      condition     = length(distinct([for l in local.listeners : l.name])) == length(local.listeners)
      error_message = "${local.listeners_file}: names are ${jsonencode([for l in local.listeners : l.name])}. Expected: every row a name of its own."
    }
    precondition {
      condition     = !contains([for l in local.listeners : tostring(l.port)], tostring(local.ssh_port))
      error_message = "${local.listeners_file}: port ${local.ssh_port} is SSH's. Expected: another port for the listener."
    }
  }
}
