output "servers" {
  description = "What was built, by name. Every root has this output with the same shape."
  value = {
    (lab_machine.server.name) = {
      fqdn         = lab_machine.server.fqdn
      ipv4         = lab_machine.server.ipv4
      ipv6         = lab_machine.server.ipv6
      ssh_user     = lab_machine.server.ssh_user
      ssh_port     = local.ssh_port
      ssh_host_key = lab_machine.server.ssh_host_key
    }
  }
}

output "vantage" {
  description = "Addresses of this host on the lab's network that nothing else uses: sources from which tests may connect, and the sink, to which the outside domain's mail is delivered."
  value = {
    ipv4 = lab_network.lab.vantage_ipv4
    ipv6 = lab_network.lab.vantage_ipv6
    sink = [lab_network.lab.gateway_ipv4, lab_network.lab.gateway_ipv6]
  }
}

output "resolver" {
  description = "Address of the lab's resolver, which knows its machines, their MX and the outside domain."
  value       = lab_network.lab.gateway_ipv4
}
