variable "name" {
  description = "Name of the server and its network: unique among the labs of this host; becomes part of device names."
  type        = string
  default     = "gatepost"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,29}[a-z0-9])?$", var.name))
    error_message = "name is \"${var.name}\". Expected: a lower-case letter, then letters, digits and hyphens, 31 characters at most, no hyphen at the end. Choose another name."
  }
}

variable "hostname" {
  description = "Fully qualified host name of the mail server, as in its certificate and its MX records."
  type        = string
  nullable    = false

  validation {
    condition     = length(var.hostname) <= 253 && can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.hostname))
    error_message = "hostname is \"${var.hostname}\". Expected: a full host name in lower case such as mx.example.test (RFC 1123), no dot at the end. Set `hostname` in settings.yml."
  }
}

variable "domains" {
  description = "Mail domains that the server receives for: the lab's resolver points their MX to it."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.domains) > 0 && length(distinct(var.domains)) == length(var.domains)
    error_message = "domains is ${jsonencode(var.domains)}. Expected: at least one domain, none twice. Set `domains` in settings.yml."
  }
  validation {
    condition     = alltrue([for d in var.domains : length(d) <= 253 && can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", d))])
    error_message = "domains is ${jsonencode(var.domains)}. Expected: domain names in lower case such as example.test, internationalised ones as xn--…. Set `domains` in settings.yml."
  }
}

variable "outside_domain" {
  description = "A mail domain outside of the server that the lab's resolver makes exist (A and MX), for tests that need a foreign sender."
  type        = string
  default     = "remote.test"
  nullable    = false

  validation {
    condition     = length(var.outside_domain) <= 253 && can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.outside_domain))
    error_message = "outside_domain is \"${var.outside_domain}\". Expected: a domain name in lower case such as remote.test. Set `outside_domain` in settings.yml."
  }
  validation {
    condition     = !contains(var.domains, var.outside_domain)
    error_message = "outside_domain is \"${var.outside_domain}\", which is also in domains. Expected: a domain that the server does not receive for. Change one of the two in settings.yml."
  }
}

variable "listeners_file" {
  description = "Path of the listener table (YAML, key postfix_listeners); absolute, or relative to where terraform runs. Default: the table of the postfix role."
  type        = string
  default     = null

  validation {
    condition     = var.listeners_file == null || can(fileexists(var.listeners_file)) && try(fileexists(var.listeners_file), false)
    error_message = "listeners_file is \"${coalesce(var.listeners_file, "null")}\": there is no such file. Expected: a copy of roles/postfix/defaults/main/listeners.yml. Check LISTENERS=."
  }
}

variable "ssh_public_key" {
  description = "Text of the public key that may log in, such as \"ssh-ed25519 AAAA… comment\"."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\\.com) AAAA[0-9A-Za-z+/]+=*( [^\n]*)?\n?$", var.ssh_public_key))
    error_message = "ssh_public_key begins with \"${substr(replace(var.ssh_public_key, "\n", " "), 0, 16)}…\". Expected: one line of a public key file (KEY.pub), never a private key."
  }
}

variable "ssh_user" {
  description = "Login name made on the machine, with sudo and without a password."
  type        = string
  default     = "gatepost"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z_][a-z0-9_-]{0,31}$", var.ssh_user)) && var.ssh_user != "root"
    error_message = "ssh_user is \"${var.ssh_user}\". Expected: a lower-case login name other than root."
  }
}

variable "ssh_sources" {
  description = "CIDRs, IPv4 and IPv6, from which SSH may come."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.ssh_sources) > 0
    error_message = "ssh_sources is empty, so nobody could configure the machine. Expected: the CIDRs from which you connect, such as [\"203.0.113.0/24\"]. Set `ssh_sources` in settings.yml."
  }
  validation {
    condition     = alltrue([for c in var.ssh_sources : can(cidrhost(c, 0))])
    error_message = "ssh_sources has ${jsonencode([for c in var.ssh_sources : c if !can(cidrhost(c, 0))])}. Expected: CIDRs such as 203.0.113.7/32 or 2001:db8::/32. Set `ssh_sources` in settings.yml."
  }
}

variable "release" {
  description = "Debian release of the machine: 13 (trixie) or 12 (bookworm). A change replaces the machine."
  type        = number
  default     = 13
  nullable    = false

  validation {
    condition     = contains([12, 13], var.release)
    error_message = "release is ${var.release}. Expected: 13 or 12. Set `local.release` in settings.yml."
  }
}

variable "image_max_age_days" {
  description = "Days after which a new machine gets a newly built image instead of the cached one; 0 builds a new one each time."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = var.image_max_age_days >= 0 && floor(var.image_max_age_days) == var.image_max_age_days
    error_message = "image_max_age_days is ${var.image_max_age_days}. Expected: a whole number of days, 0 or more. Set `local.image_max_age_days` in settings.yml."
  }
}

variable "boot_timeout" {
  description = "Seconds that the machine may take from its start until SSH answers."
  type        = number
  default     = 120
  nullable    = false

  validation {
    condition     = var.boot_timeout >= 5
    error_message = "boot_timeout is ${var.boot_timeout}. Expected: at least 5 seconds."
  }
}
