# What the root makes of its variables, without a machine: `terraform test` in terraform/local. The rules are compared with a
# listener table of the test's own, so that the expectation is not derived from what it judges.

mock_provider "lab" {
  mock_resource "lab_machine" {
    defaults = {
      ipv4         = "198.18.0.16"
      ipv6         = "fd00::10"
      ssh_host_key = "ssh-ed25519 AAAAC3Nz"
    }
  }
}

variables {
  name           = "t"
  hostname       = "mx.example.test"
  domains        = ["example.test"]
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHGK tester"
  ssh_sources    = ["203.0.113.7/32"]
  listeners_file = "tests/listeners.yml"
}

run "rules_come_from_the_table_and_ssh" {
  assert {
    condition = lab_firewall.server.rules == toset([
      { port = 25, protocol = "tcp", sources = toset(["0.0.0.0/0", "::/0"]) },
      { port = 26, protocol = "tcp", sources = toset(["2001:db8::/32"]) },
      { port = 22, protocol = "tcp", sources = toset(["203.0.113.7/32"]) },
    ])
    error_message = "rules are ${jsonencode(lab_firewall.server.rules)}"
  }
  assert {
    condition     = lab_machine.server.firewall == lab_firewall.server.name
    error_message = "the machine stands without its firewall"
  }
  assert {
    condition     = lab_machine.server.mx_for == toset(["example.test"]) && lab_network.lab.outside_domain == "remote.test"
    error_message = "the resolver would not know the domains"
  }
}

run "the_output_is_the_contract" {
  assert {
    condition = output.servers == {
      t = {
        fqdn         = "mx.example.test"
        ipv4         = "198.18.0.16"
        ipv6         = "fd00::10"
        ssh_user     = "gatepost"
        ssh_port     = 22
        ssh_host_key = "ssh-ed25519 AAAAC3Nz"
      }
    }
    error_message = "servers is ${jsonencode(output.servers)}"
  }
}

run "the_default_table_is_the_role_s" {
  command = plan
  variables {
    listeners_file = null
  }
  assert {
    condition     = contains([for r in lab_firewall.server.rules : r.port], 587)
    error_message = "the role's listener table was not read"
  }
}

run "name_in_capitals" {
  command = plan
  variables {
    name = "Mail"
  }
  expect_failures = [var.name]
}

run "name_too_long" {
  command = plan
  variables {
    name = "a2345678901234567890123456789012"
  }
  expect_failures = [var.name]
}

run "hostname_without_domain" {
  command = plan
  variables {
    hostname = "mx"
  }
  expect_failures = [var.hostname]
}

run "hostname_with_underscore" {
  command = plan
  variables {
    hostname = "my_host.example.test"
  }
  expect_failures = [var.hostname]
}

run "no_domain" {
  command = plan
  variables {
    domains = []
  }
  expect_failures = [var.domains]
}

run "domain_twice" {
  command = plan
  variables {
    domains = ["example.test", "example.test"]
  }
  expect_failures = [var.domains]
}

run "domain_that_is_none" {
  command = plan
  variables {
    domains = ["exa mple.test"]
  }
  expect_failures = [var.domains]
}

run "outside_domain_inside" {
  command = plan
  variables {
    outside_domain = "example.test"
  }
  expect_failures = [var.outside_domain]
}

run "no_such_table" {
  command = plan
  variables {
    listeners_file = "tests/none.yml"
  }
  expect_failures = [var.listeners_file]
}

run "port_twice" {
  command = plan
  variables {
    listeners_file = "tests/port_twice.yml"
  }
  expect_failures = [lab_firewall.server]
}

run "port_of_ssh" {
  command = plan
  variables {
    listeners_file = "tests/port_of_ssh.yml"
  }
  expect_failures = [lab_firewall.server]
}

run "port_in_quotes_with_a_colon" {
  command = plan
  variables {
    listeners_file = "tests/port_with_colon.yml"
  }
  expect_failures = [lab_firewall.server]
}

run "port_with_a_leading_zero" {
  command = plan
  variables {
    listeners_file = "tests/port_with_zero.yml"
  }
  expect_failures = [lab_firewall.server]
}

run "name_twice" {
  command = plan
  variables {
    listeners_file = "tests/name_twice.yml"
  }
  expect_failures = [lab_firewall.server]
}

run "private_key" {
  command = plan
  variables {
    ssh_public_key = "-----BEGIN OPENSSH PRIVATE KEY-----"
  }
  expect_failures = [var.ssh_public_key]
}

run "root_as_user" {
  command = plan
  variables {
    ssh_user = "root"
  }
  expect_failures = [var.ssh_user]
}

run "no_ssh_source" {
  command = plan
  variables {
    ssh_sources = []
  }
  expect_failures = [var.ssh_sources]
}

run "ssh_source_that_is_no_cidr" {
  command = plan
  variables {
    ssh_sources = ["203.0.113.7"]
  }
  expect_failures = [var.ssh_sources]
}

run "release_11" {
  command = plan
  variables {
    release = 11
  }
  expect_failures = [var.release]
}

run "half_a_day" {
  command = plan
  variables {
    image_max_age_days = 0.5
  }
  expect_failures = [var.image_max_age_days]
}

run "no_time_to_boot" {
  command = plan
  variables {
    boot_timeout = 0
  }
  expect_failures = [var.boot_timeout]
}
