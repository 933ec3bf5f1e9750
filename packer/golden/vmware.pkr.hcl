source "vmware-iso" "golden" {
  iso_url              = var.source
  iso_checksum         = var.checksum
  boot_command         = var.boot_command
  boot_wait            = "10s"
  http_directory       = var.http_directory
  guest_os_type        = "centos-64"
  version              = 14
  cpus                 = var.cpus
  memory               = var.memory
  disk_size            = var.disk
  disk_adapter_type    = "pvscsi"
  disk_type_id         = 0
  network_adapter_type = "vmxnet3"
  headless             = true
  output_directory     = var.output
  vm_name              = var.name
  vmdk_name            = var.name
  communicator         = "ssh"
  ssh_username         = "root"
  ssh_private_key_file = var.key
  ssh_timeout          = var.seconds
  shutdown_command     = "systemctl poweroff"
  shutdown_timeout     = "10m"
}
