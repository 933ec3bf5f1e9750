# Which plugins today's Packer has to install, once: `packer init packer/init`.
# Alone in a directory, because Packer 1.6, as Debian has it, carries the builders itself and does
# not know this block; since 1.8.1 installed plugins are found without it
# (https://github.com/hashicorp/packer/pull/11712).
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.0"
    }
    virtualbox = {
      source  = "github.com/hashicorp/virtualbox"
      version = ">= 1.0.0"
    }
    vmware = {
      source  = "github.com/hashicorp/vmware"
      version = ">= 1.0.0"
    }
  }
}
